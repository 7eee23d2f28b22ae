"""Run history: jobs as runs, which is how the SDK streams, downloads, archives and changes them."""

from datetime import datetime, timedelta
from uuid import NAMESPACE_URL, uuid5

from starlette.responses import JSONResponse, Response

from ..jobs.status import EXECUTION_LOG, FINAL, artifact_location
from ..references import MODEL_TYPES
from ..storage import UriError
from ..store import Json, Resource
from .errors import bad_request
from .jobs import change, find_job
from .routing import WORKSPACE, Call, Coverage, route, whole_number

HISTORY = "/history/v1.0" + WORKSPACE
PAGE = 100  # runs
# Run history's words for what may change of a run -> those of a job.
CHANGES = {"displayName": "displayName", "description": "description", "hidden": "isArchived"}


@route("GET", HISTORY + "/runs/{name}", "run history: get")
async def get_run(call: Call) -> Response:
    return JSONResponse(_run(call, find_job(call)))


@route("POST", HISTORY + "/rundata", "run history: run data (what download asks for)")
async def run_data(call: Call) -> Response:
    name = call.body.get("runId")
    if not isinstance(name, str) or not name:
        raise bad_request("The request's body needs 'runId'.")
    return JSONResponse({"runMetadata": _run(call, find_job(call, name))})


@route("GET", HISTORY + "/runs/{name}/details", "run history: details (what stream follows)")
async def run_details(call: Call) -> Response:
    """What `jobs.stream` polls: status, error and links to the log files."""
    job = find_job(call)
    run = _run(call, job)
    logs = {path: artifact_location(job.name, path) for path in _log_paths(job)}
    same = (
        "runId", "runUuid", "parentRunId", "rootRunId", "status", "startTimeUtc", "endTimeUtc", "error", "warnings",
        "tags", "properties", "target", "compute", "inputs", "outputs", "runTypeV2", "createdBy", "duration",
    )  # fmt: skip
    return JSONResponse(
        {
            **{key: run[key] for key in same},
            "createdTimeUtc": run["createdUtc"],
            "logFiles": {name: call.control.storage.read_sas(location) for name, location in logs.items()},
        }
    )


def _log_paths(job: Resource) -> list[str]:
    paths = [f"user_logs/{name}" for name in job.internal.get("logs") or []]
    return [EXECUTION_LOG] if job.internal.get("execution_log") else paths


@route("GET", HISTORY + "/runs/{name}/children", "run history: children (list by parent)")
async def list_children(call: Call) -> Response:
    parent = find_job(call)
    query = call.request.query_params
    start, size = whole_number(call, "$continuationtoken", 0), min(whole_number(call, "$top", PAGE), PAGE)
    if size == 0:
        raise bad_request("$top must be at least 1.")
    found = call.control.store.select(call.id("jobs"), where={"parent_job": parent.name}, skip=start, limit=size + 1)
    answer: Json = {"value": [_run(call, child) for child in found[:size]]}
    if len(found) > size and "$top" not in query:
        token = str(start + size)
        answer["continuationToken"] = token
        answer["nextLink"] = str(call.request.url.include_query_params(**{"$continuationtoken": token}))
    return JSONResponse(answer)


@route(
    "GET",
    HISTORY + "/runs/{name}/serviceinstances/{node}",
    "run history: services (show_services)",
    coverage=Coverage.PARTLY,
    note="a job's own services (JupyterLab, SSH …) are accepted, but not started",
)
async def service_instances(call: Call) -> Response:
    services = find_job(call).properties.get("services") or {}
    return JSONResponse(
        {
            "instances": {
                name: {
                    "type": service.get("jobServiceType"),
                    "port": service.get("port"),
                    "status": "Failed",
                    "error": {"error": {"code": "NotModelled", "message": service.get("errorMessage")}},
                    "endpoint": service.get("endpoint"),
                    "properties": service.get("properties") or {},
                }
                for name, service in services.items()
            }
        }
    )


@route("PATCH", HISTORY + "/experiments/{experiment}/runs/{name}", "run history: change (update, archive, restore)")
async def change_run(call: Call) -> Response:
    """Tags and properties are added to those there are; a job that has ended can be changed, too."""
    job = find_job(call)
    properties = {CHANGES[key]: value for key, value in call.body.items() if key in CHANGES and value is not None}
    for key in ("tags", "properties"):
        given = call.body.get(key)
        if isinstance(given, dict):
            properties[key] = {**(job.properties.get(key) or {}), **given}
        elif given is not None:
            raise bad_request(f"'{key}' must be an object whose values are texts.")
    return JSONResponse(_run(call, change(call, job, properties)))


@route(
    "POST", "/data/v1.0" + WORKSPACE + "/dataversion/batchGetResolvedUris", "data: resolve URIs (download of outputs)"
)
async def resolve_uris(call: Call) -> Response:
    """Where the content of assets lies, by the ids that run history gives the outputs of jobs."""
    ids = call.body.get("values")
    if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
        raise bad_request("The request's body needs 'values', a list of asset ids.")
    return JSONResponse({"values": {id: _resolved(call, id) for id in ids}})


def _resolved(call: Call, id: str) -> Json:
    try:
        location = call.control.references.locate(id)
    except UriError as error:
        raise bad_request(f"The asset '{id}' cannot be found: {error}", "NotFound") from None
    return {"uri": call.control.references.long_uri(location), "type": "UriFolder"}


def _outputs(call: Call, job: Resource) -> Json:
    """The job's outputs by the ids of their assets.

    The service types a model MLFlowModel or the like, on which `jobs.download` of the SDK crashes (a TypeError of its
    own); here a model is a folder, so that it can be downloaded.
    """
    registered, workspace = job.internal.get("registered") or {}, call.control.store.get(call.workspace_id)
    guid = workspace.properties["workspaceId"] if workspace else ""
    base = f"azureml://locations/{call.control.home.project.location}/workspaces/{guid}"
    outputs: Json = {}
    for name, output in (job.properties.get("outputs") or {}).items():
        if asset := registered.get(name):
            id = f"{base}/{asset['kind']}/{asset['name']}/versions/{asset['version']}"
        elif name != "default" and output.get("uri"):
            id = f"{base}/jobs/{job.name}/outputs/{name}"  # it failed, or is a model without a name
        else:
            continue
        kind = output.get("jobOutputType")
        outputs[name] = {"assetId": id, "type": "uri_folder" if kind in MODEL_TYPES else kind}
    return outputs


def _run(call: Call, job: Resource) -> Json:
    """A job in run history's words."""
    properties, known, times = job.properties, job.internal, job.internal.get("times", {})
    ended = next((times[status] for status in FINAL if status in times), None)
    project = call.control.home.project
    compute = call.control.store.get(properties.get("computeId") or "")
    target = compute.name if compute else "serverless" if properties.get("jobType") == "Command" else None
    error, message = None, known.get("error")
    if message and properties["status"] == "Failed":
        error = {"error": {"code": "UserError", "message": message, "messageParameters": {}, "details": []},
                 "time": ended}  # fmt: skip
    return {
        "runId": job.name,
        "runUuid": str(uuid5(NAMESPACE_URL, job.id)),
        "rootRunId": known.get("root_job") or known.get("parent_job") or job.name,
        "parentRunId": known.get("parent_job"),
        "experimentId": str(uuid5(NAMESPACE_URL, f"{project.workspace_id}/{properties['experimentName']}")),
        "status": properties["status"],
        "createdUtc": job.created,
        "createdBy": {
            "userObjectId": call.control.state.principal_id,
            "userTenantId": project.tenant,
            "userName": "local",
        },
        "startTimeUtc": times.get("Running"),
        "endTimeUtc": ended,
        "duration": _duration(times.get("Running"), ended),
        "displayName": properties.get("displayName"),
        "description": properties.get("description"),
        "hidden": bool(properties.get("isArchived")),
        "dataContainerId": f"dcid.{job.name}",
        "runType": "azureml.scriptrun",
        "runTypeV2": {"orchestrator": "Execution", "traits": [], "computeType": "AmlCompute"},
        "tags": properties.get("tags") or {},
        "properties": properties.get("properties") or {},
        "target": target,
        "compute": _compute(job, compute, target),
        "inputs": {},
        "outputs": _outputs(call, job),
        "error": error,
        "warnings": [{"source": "Job", "message": message}] if message and error is None else [],
    }


def _compute(job: Resource, compute: Resource | None, target: str | None) -> Json | None:
    if target is None:
        return None
    inner = compute.properties["properties"] if compute else {}
    return {
        "target": target,
        "targetType": "AmlCompute",
        "vmSize": inner.get("vmSize"),
        "instanceCount": (job.properties.get("resources") or {}).get("instanceCount"),
        "priority": inner.get("vmPriority"),
    }


def _duration(start: str | None, end: str | None) -> str | None:
    """The time between two timestamps, as .NET writes it: ``00:01:30.2500000``."""
    if start is None or end is None:
        return None
    between: timedelta = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    minutes, seconds = divmod(between.total_seconds(), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours:02}:{minutes:02}:{seconds:010.7f}"
