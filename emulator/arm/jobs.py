"""Jobs: submit, get, list, cancel. What runs them is emulator/jobs.py."""

from collections.abc import Callable

from starlette.responses import JSONResponse, Response

from ..job_status import FINAL, artifact_location
from ..mlflow_runs import start_run
from ..store import Json, Resource
from .errors import ArmError, bad_request
from .routing import ASSET_NAME, WORKSPACE, Call, page, route, short_id, show

# Azure refuses any other change of a job that exists.
MUTABLE = ("description", "tags", "displayName", "properties", "isArchived")
MOUNTED = ("uri_file", "uri_folder", "mltable", "mlflow_model")  # inputs that are no literals


def _job(call: Call) -> Resource:
    job = call.control.store.get(call.id("jobs/{name}"))
    if job is None:
        raise ArmError(404, "UserError", f"Not found: job {call.params['name']} does not exist.", "NotFoundError")
    return job


@route("GET", WORKSPACE + "/jobs/{name}", "jobs: get")
async def get_job(call: Call) -> Response:
    return show(call, _with_services(call, _job(call)))


@route("GET", WORKSPACE + "/jobs", "jobs: list")
async def list_jobs(call: Call) -> Response:
    jobs = call.control.store.children(call.id("jobs"), newest_first=True)
    return page(call, [_with_services(call, job) for job in jobs])


@route("PUT", WORKSPACE + "/jobs/{name}", "jobs: create, update")
async def put_job(call: Call) -> Response:
    async with call.control.jobs.lock(call.id("jobs/{name}")):
        return await _put_job(call)


async def _put_job(call: Call) -> Response:
    properties = {key: value for key, value in call.properties.items() if value is not None}
    existing = call.control.store.get(call.id("jobs/{name}"))
    if existing is not None:
        return _update(call, existing, properties)
    submission = SUBMISSIONS.get(str(properties.get("jobType")))
    if submission is None:
        raise bad_request(
            f"jobType '{properties.get('jobType')}' is not modelled by the local Azure;"
            f" it runs {', '.join(SUBMISSIONS)}."
        )
    body = {"properties": submission(call, properties)}
    mlflow_url = call.control.urls["mlflow"]
    run, experiment = await start_run(mlflow_url, body["properties"]["experimentName"], call.params["name"])
    known = {"mlflow_run": run, "mlflow_experiment": experiment}
    job = call.control.store.put(call.id("jobs/{name}"), body, known)
    call.control.jobs.submit(job.id)
    return show(call, _with_services(call, job), 201)


def _command(call: Call, properties: Json) -> Json:
    """A command job as it is stored. Raises ArmError."""
    for needed in ("command", "environmentId"):
        if not properties.get(needed):
            raise bad_request(f"A command job needs '{needed}'.")
    must_exist(call, properties.get("computeId"), "compute")
    must_exist(call, properties["environmentId"], "environment")
    if properties.get("codeId"):
        must_exist(call, properties["codeId"], "code")
    return normalised(call, properties)


# What each kind of job must bring, and what is stored of it: the properties as they were given -> those that are kept.
SUBMISSIONS: dict[str, Callable[[Call, Json], Json]] = {"Command": _command}


def _with_services(call: Call, job: Resource) -> Resource:
    """The job with the addresses of its pages; they are not stored, since MLflow's port may change."""
    url, known = call.control.urls["mlflow"], job.internal
    # The SDK appends "&tid=…" to what it shows as the studio's URL, so a query must have begun.
    page_url = (
        f"{url}/#/experiments/{known.get('mlflow_experiment')}/runs/{known.get('mlflow_run')}"
        f"?workspace={call.control.home.project.workspace}"
    )
    job.properties["services"] = {
        name: {"jobServiceType": name, "endpoint": endpoint, "status": None}
        for name, endpoint in (("Tracking", url), ("Studio", page_url))
    }
    return job


def must_exist(call: Call, id: str | None, kind: str) -> None:
    if not id or call.control.store.get(id) is None:
        raise bad_request(
            f"The {kind} '{short_id(id or '')}' does not exist in this workspace.",
            "NotFound",
        )


def normalised(call: Call, properties: Json) -> Json:
    """What the service makes of a submitted job; clients rely on these additions."""
    name = call.params["name"]
    inputs: Json = {}
    for key, value in (properties.get("inputs") or {}).items():
        mounted = value.get("jobInputType") in MOUNTED
        inputs[key] = {**value, "mode": value.get("mode") or "ReadOnlyMount"} if mounted else value
    outputs: Json = {
        "default": {
            "jobOutputType": "uri_folder",
            "mode": "ReadWriteMount",
            "uri": f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{name}",
        }
    }
    for key, value in (properties.get("outputs") or {}).items():
        uri = value.get("uri") or f"azureml://datastores/workspaceblobstore/paths/azureml/{name}/{key}/"
        outputs[key] = {**value, "mode": value.get("mode") or "ReadWriteMount", "uri": uri}
    properties.pop("services", None)  # ours to say
    for key in (*(properties.get("inputs") or {}), *(properties.get("outputs") or {})):
        if not ASSET_NAME.fullmatch(key):
            raise bad_request(f"'{key}' is no name of an input or output: give letters, digits and '_'.")
    return {
        "description": None,
        "displayName": name,
        "experimentName": "Default",
        "isArchived": False,
        "tags": {},
        "properties": {},
        "environmentVariables": {},
        **properties,
        "resources": {"instanceCount": 1, **(properties.get("resources") or {})},
        "inputs": inputs,
        "outputs": outputs,
        "status": "NotStarted",
    }


def _update(call: Call, job: Resource, properties: Json) -> Response:
    """Apply what may change. Anything else is refused as the service refuses it."""
    current = job.properties
    for key, value in properties.items():
        if key in MUTABLE or key in ("jobType", "status", "services"):
            continue
        if key in ("inputs", "outputs"):
            same = set(value) <= set(current.get(key) or {})
        elif key == "resources":
            same = value.items() <= current["resources"].items()
        else:
            same = value == current.get(key)
        if not same:
            raise ArmError(
                400,
                "UserError",
                "A job with this name already exists. If you are trying to create a new job, use a different name. If"
                f" you are trying to update an existing job, the job's {key} cannot be changed. Only description, tags,"
                " displayName, properties, and isArchived can be updated.",
                "JobPropertyImmutable",
            )
    current.update({key: value for key, value in properties.items() if key in MUTABLE})
    return show(call, _with_services(call, call.control.store.save(job)))


@route("POST", WORKSPACE + "/jobs/{name}/cancel", "jobs: cancel")
async def cancel_job(call: Call) -> Response:
    job = _job(call)
    if job.properties["status"] in FINAL:
        raise bad_request(f"Job {job.name} has ended already: {job.properties['status']}.", "JobInTerminalState")
    await call.control.jobs.cancel(job.id)
    return Response(status_code=202, headers=call.control.operations.done(job.id))


@route("GET", "/history/v1.0" + WORKSPACE + "/runs/{name}/details", "run history: details (what stream follows)")
async def run_details(call: Call) -> Response:
    """What `jobs.stream` polls: status, error and links to the log files."""
    job = _job(call)
    logs = {}
    if job.internal.get("log"):
        location = artifact_location(job.name, "user_logs/std_log.txt")
        logs["user_logs/std_log.txt"] = call.control.storage.read_sas(location)
    answer: Json = {
        "runId": job.name,
        "status": job.properties["status"],
        "logFiles": logs,
        "properties": job.properties["properties"],
    }
    if message := job.internal.get("error"):
        answer["error"] = {"error": {"code": "UserError", "message": message}}
    return JSONResponse(answer)
