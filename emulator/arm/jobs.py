"""Jobs: submit, get, list, update, cancel, delete. What runs them is emulator/jobs/."""

import re
from collections.abc import Callable
from typing import Any

import aiohttp
from starlette.responses import Response

from ..jobs.mlflow_runs import MlflowError, start_run
from ..jobs.outputs import forget, output_uri
from ..jobs.status import UNFINISHED
from ..references import MODEL_TYPES
from ..store import ABSENT, PRESENT, Json, Resource
from .errors import ArmError, bad_request
from .routing import ASSET_NAME, WORKSPACE, Call, Coverage, listing, route, short_id, show

# Azure refuses any other change of a job that exists.
MUTABLE = ("description", "tags", "displayName", "properties", "isArchived")
MOUNTED = ("uri_file", "uri_folder", "mltable", *MODEL_TYPES)  # inputs that are no literals
STRICT_OUTPUTS = "2025-01-01-preview"  # the API version, by which the SDK submits commands, without output versions

# What each kind of job must bring, and what is stored of it: the properties as they were given -> those that are kept.
SUBMISSIONS: dict[str, Callable[[Call, Json], Json]] = {}


def find_job(call: Call, name: str | None = None) -> Resource:
    """The job that the path names, or ``name``. Raises 404."""
    name = name or call.params["name"]
    job = call.control.store.get(f"{call.workspace_id}/jobs/{name}")
    if job is None:
        raise ArmError(404, "UserError", f"Not found: job {name} does not exist.", "NotFoundError")
    return job


@route("GET", WORKSPACE + "/jobs/{name}", "jobs: get")
async def get_job(call: Call) -> Response:
    return show(call, with_services(call, find_job(call)))


@route("GET", WORKSPACE + "/jobs", "jobs: list")
async def list_jobs(call: Call) -> Response:
    """The newest first; ``jobType``, ``tag`` (a key), ``properties`` (keys, or key=value) and listViewType choose.

    Children of jobs are left out: run history lists them.
    """
    query = call.request.query_params
    where: dict[str, Any] = {"parent_job": ABSENT}
    if kind := query.get("jobType"):
        where["$.properties.jobType"] = kind
    for pair in filter(None, [query.get("tag", "")]):
        where.update(_has("tags", pair))
    for pair in filter(None, query.get("properties", "").split(",")):
        where.update(_has("properties", pair))
    return listing(
        call,
        call.id("jobs"),
        newest_first=True,
        archived=call.view,
        where=where,
        prepare=lambda job: with_services(call, job),
    )


def _has(field: str, pair: str) -> dict[str, Any]:
    """The condition that a job has a tag or property, given as ``key`` or ``key=value``."""
    key, equals, value = pair.partition("=")
    if '"' in key or "\0" in key or not key.strip():
        raise bad_request(f"'{pair}' is no name of a tag or property to list by: give key or key=value.")
    return {f'$.properties.{field}."{key.strip()}"': value if equals else PRESENT}


@route(
    "PUT",
    WORKSPACE + "/jobs/{name}",
    "jobs: create, update",
    note="Sweep, AutoML and Spark jobs are refused, also as steps of pipelines; no step reuses an earlier run",
)
async def put_job(call: Call) -> Response:
    async with call.control.jobs.lock(call.id("jobs/{name}")):
        return await _put_job(call)


async def _put_job(call: Call) -> Response:
    properties = {key: value for key, value in call.properties.items() if value is not None}
    existing = call.control.store.get(call.id("jobs/{name}"))
    if existing is not None:
        return _update(call, existing, properties)
    kind = str(properties.get("jobType"))
    if kind not in SUBMISSIONS:
        raise bad_request(
            f"Jobs of the type '{kind}' are not modelled by the local Azure; it runs {', '.join(SUBMISSIONS)}."
        )
    parent, versions = _parent(call, properties), _output_versions(call, properties)
    body = {"properties": SUBMISSIONS[kind](call, properties)}
    plan = body["properties"].pop("plan", None)  # what its executor needs, and no answer shows
    try:
        run, experiment = await start_run(
            call.control.urls["mlflow"], body["properties"]["experimentName"], call.params["name"]
        )
    except (aiohttp.ClientError, MlflowError, TimeoutError) as error:
        raise ArmError(
            503, "ServiceUnavailable", f"The MLflow server does not answer ({type(error).__name__}); ask again."
        ) from None
    known = {
        "mlflow_run": run,
        "mlflow_experiment": experiment,
        "parent_job": parent,
        "asset_versions": versions,
        "plan": plan,
    }
    job = call.control.store.put(call.id("jobs/{name}"), body, known)
    call.control.jobs.submit(job.id)
    return show(call, with_services(call, job), 201, {"Location": str(call.request.url)})


def _parent(call: Call, properties: Json) -> str | None:
    """Takes the name of the job above this one out of ``properties``. Raises ArmError."""
    parent = properties.pop("parentJobName", None)
    if parent is not None and (not isinstance(parent, str) or parent.lower() == call.params["name"].lower()):
        raise bad_request("'parentJobName' must be the name of another job.")
    return parent


def _output_versions(call: Call, properties: Json) -> Json:
    """Takes the versions, by which outputs shall be registered, out of ``properties``: output name -> version."""
    given = properties.get("outputs") or {}
    if not isinstance(given, dict):
        raise bad_request("'outputs' must be an object.")
    outputs = {key: value for key, value in given.items() if isinstance(value, dict)}
    versions = {key: value.pop("assetVersion") for key, value in outputs.items() if value.get("assetVersion")}
    if versions and call.request.query_params.get("api-version") == STRICT_OUTPUTS:
        raise bad_request(
            "Request is invalid and/or missing fields. Could not find member 'assetVersion' on object of type"
            f" '{outputs[next(iter(versions))].get('jobOutputType')} output': the service counts versions up by itself"
            " here. Give the output a name alone.",
            "RequestInvalid",
        )
    return versions


def with_services(call: Call, job: Resource) -> Resource:
    """The job with the addresses of its pages; they are not stored, since MLflow's port may change."""
    url, known = call.control.urls["mlflow"], job.internal
    # The SDK appends "&tid=…" to what it shows as the studio's URL, so a query must have begun.
    page_url = (
        f"{url}/#/experiments/{known.get('mlflow_experiment')}/runs/{known.get('mlflow_run')}"
        f"?workspace={call.control.home.project.workspace}"
    )
    job.properties["services"] = {
        **(job.properties.get("services") or {}),
        **{
            name: {"jobServiceType": name, "endpoint": endpoint, "status": None}
            for name, endpoint in (("Tracking", url), ("Studio", page_url))
        },
    }
    return job


def must_exist(call: Call, id: Any, kind: str) -> None:
    """Refuse an id that is none of a ``kind`` ("compute", "code" …), or of one that is not there."""
    form = f".+/{kind}s/[^/]+" + ("/versions/[^/]+" if kind in ("environment", "code") else "")
    known = isinstance(id, str) and re.fullmatch(form, id, re.IGNORECASE) and call.control.store.get(id)
    if not known:
        raise bad_request(
            f"The {kind} '{short_id(str(id or '')) or id}' does not exist in this workspace.",
            "NotFound",
        )


def normalised(call: Call, properties: Json) -> Json:
    """What the service makes of any kind of submitted job; clients rely on these additions."""
    name = call.params["name"]
    for key in (*(properties.get("inputs") or {}), *(properties.get("outputs") or {})):
        if not ASSET_NAME.fullmatch(key):
            raise bad_request(f"'{key}' is no name of an input or output: give letters, digits and '_'.")
    # An optional input that was given no value; the SDK could not read it back.
    inputs = {k: v for k, v in (properties.get("inputs") or {}).items() if v.get("value", v) is not None}
    properties.pop("services", None)  # ours to say; a kind that keeps what was given adds it again
    outputs: Json = {
        "default": {
            "jobOutputType": "uri_folder",
            "mode": "ReadWriteMount",
            "uri": f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{name}",
        }
    }
    for key, value in (properties.get("outputs") or {}).items():
        if value.get("jobOutputType") not in MOUNTED:  # the SDK could not read the job back
            known = ", ".join(MOUNTED)
            raise bad_request(f"The output '{key}' has the type '{value.get('jobOutputType')}'; known are {known}.")
        uri = filled_in(value.get("uri") or output_uri(name, key, str(value.get("jobOutputType"))), name, key)
        outputs[key] = {**value, "mode": value.get("mode") or "ReadWriteMount", "uri": uri}
    return {
        "description": None,
        "displayName": name,
        "experimentName": "Default",
        "isArchived": False,
        "tags": {},
        "properties": {},
        **properties,
        "inputs": {key: _normalised_input(value) for key, value in inputs.items()},
        "outputs": outputs,
        "status": "NotStarted",
    }


def filled_in(uri: str, job: str, output: str) -> str:
    """An output's place with what Azure fills into it: ``…/paths/azureml/${{name}}/${{output_name}}/``."""
    values = {"name": job, "output_name": output, "default_datastore": "workspaceblobstore"}
    return re.sub(r"\$\{\{\s*(\w+)\s*\}\}", lambda found: values.get(found[1], found[0]), uri)


def _normalised_input(value: Json) -> Json:
    if value.get("jobInputType") not in MOUNTED:
        return value
    uri = str(value.get("uri"))
    folder = value["jobInputType"] in ("uri_folder", "mltable") and "datastores/" in uri and not uri.endswith("/")
    return {**value, "mode": value.get("mode") or "ReadOnlyMount", "uri": uri + "/" * folder}


def _update(call: Call, job: Resource, properties: Json) -> Response:
    """Apply what may change. Anything else is refused as the service refuses it."""
    current = job.properties
    for key, value in properties.items():
        if key in MUTABLE or key in ("jobType", "status", "services", "parentJobName"):
            continue
        if key in ("inputs", "outputs"):
            same = isinstance(value, dict) and set(value) <= set(current.get(key) or {})
        elif key == "resources":
            same = isinstance(value, dict) and value.items() <= (current.get("resources") or {}).items()
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
    return show(call, with_services(call, change(call, job, properties)))


def change(call: Call, job: Resource, properties: Json) -> Resource:
    """Store what may change of a job: tags and the like as they are given, properties beside those there are."""
    check_labels(properties)
    changed = {key: value for key, value in properties.items() if key in MUTABLE}
    if "properties" in changed:
        changed["properties"] = {**job.properties.get("properties", {}), **changed["properties"]}
    job.properties.update(changed)
    return call.control.store.save(job)


def check_labels(properties: Json) -> None:
    """Refuse tags, properties and variables that are no pairs of text, and texts that are none; drop null ones."""
    for field in ("tags", "properties", "environmentVariables"):
        given = properties.get(field)
        if given is None:
            continue
        if not isinstance(given, dict) or not all(isinstance(value, str | None) for value in given.values()):
            raise bad_request(f"'{field}' must be an object whose values are texts.")
        properties[field] = {name: value for name, value in given.items() if value is not None}
    for field in ("description", "displayName", "experimentName"):
        if not isinstance(properties.get(field), str | None):
            raise bad_request(f"'{field}' must be a text.")
    # Guess: an experiment's name has 1 to 255 characters
    if not 1 <= len(properties.get("experimentName", "Default")) <= 255:
        raise bad_request("'experimentName' must have 1 to 255 characters.")
    if not isinstance(properties.get("isArchived"), bool | None):
        raise bad_request("'isArchived' must be true or false.")


@route(
    "POST",
    WORKSPACE + "/jobs/{name}/cancel",
    "jobs: cancel",
    refuses={"Completed": 400, "Failed": 400, "Canceled": 400},
)
async def cancel_job(call: Call) -> Response:
    job = find_job(call)
    call.check_state(job)
    return Response(status_code=202, headers=call.control.operations.start(job.id, call.control.jobs.cancel(job.id)))


@route(
    "DELETE",
    WORKSPACE + "/jobs/{name}",
    "jobs: delete",
    coverage=Coverage.PARTLY,
    note="its record and local folders; its logs and outputs stay in storage",
    refuses=dict.fromkeys(UNFINISHED, 409),  # Guess: an unfinished job must be canceled first
)
async def delete_job(call: Call) -> Response:
    job = find_job(call)
    call.check_state(job)
    call.control.store.delete(job.id)
    work = forget(call.control.home.path / "jobs" / job.name)
    return Response(status_code=202, headers=call.control.operations.start(job.id, work))
