"""Managed online deployments. What serves them is emulator/online/deployments.py."""

import re

from starlette.responses import JSONResponse, Response

from ..durations import seconds
from ..online.deployments import LOGS
from ..online.forwarding import REQUEST_SETTINGS
from ..online.probes import DEFAULTS as PROBE_DEFAULTS
from ..online.probes import probe
from ..store import Json, Resource
from .endpoints import BUSY, ENDPOINT, find_endpoint
from .errors import ArmError, bad_request, not_found
from .routing import Call, listing, route, short_id, show

DEPLOYMENT = ENDPOINT + "/deployments/{deployment}"
MAX_INSTANCES = 20  # on one machine; Azure's limit is the subscription's quota
MAX_LOG_LINES = 10_000
MAX_INT = 2**31 - 1
SCALE_TYPES = ("Default", "TargetUtilization")
# What an answer shows of a deployment besides its state, and what it is when a request does not say.
SHOWN: Json = {
    "description": None,
    "properties": {},
    "codeConfiguration": None,
    "environmentId": None,
    "environmentVariables": {},
    "model": None,
    "modelMountPath": None,
    "instanceType": "Standard_F4s_v2",
    "appInsightsEnabled": False,
    "egressPublicNetworkAccess": "Enabled",
    "dataCollector": None,
}


def _find(call: Call) -> Resource:
    deployment = call.control.store.get(call.id("onlineEndpoints/{endpoint}/deployments/{deployment}"))
    if deployment is None:
        raise not_found("deployment", f"{call.params['endpoint']}/{call.params['deployment']}")
    return deployment


@route("GET", ENDPOINT + "/deployments", "online deployments: list")
async def list_deployments(call: Call) -> Response:
    return listing(call, f"{find_endpoint(call).id}/deployments")


@route("GET", DEPLOYMENT, "online deployments: get")
async def get_deployment(call: Call) -> Response:
    find_endpoint(call)
    return show(call, _find(call))


@route(
    "PUT", DEPLOYMENT, "online deployments: create, update, scale",
    note="instances are processes of this machine; instanceType and autoscaling are stored, not modelled",
    refuses={**BUSY, "Scaling": 409},
)  # fmt: skip
async def put_deployment(call: Call) -> Response:
    """Create a deployment, replace it without a gap, or only scale it; it serves once its readiness probe answers."""
    endpoint = find_endpoint(call)
    if endpoint.properties["provisioningState"] == "Deleting":
        raise ArmError(409, "Conflict", f"The endpoint '{endpoint.name}' is being deleted.")
    id = f"{endpoint.id}/deployments/{call.params['deployment']}"
    existing = call.control.store.get(id)
    if existing is not None:
        call.check_state(existing)
    properties = _properties(call)
    body = {
        "location": call.body.get("location") or call.control.home.project.location,
        "tags": call.body.get("tags") or {},
        "kind": "Managed",
        "sku": {"name": "Default", "tier": "Standard", "capacity": _capacity(call)},
        "properties": {**properties, "provisioningState": "Creating" if existing is None else "Updating"},
    }
    deployment = call.control.store.put(id, body)
    work = call.control.deployments.bring_up(deployment.id)
    return show(call, deployment, 201 if existing is None else 200, call.control.operations.start(deployment.id, work))


def _properties(call: Call) -> Json:
    """The deployment's settings, checked and completed as the service shows them."""
    given = {key: value for key, value in call.properties.items() if value is not None}
    if given.get("endpointComputeType", "Managed") != "Managed":
        raise bad_request("Only managed online deployments can be created here, none of Kubernetes.")
    for name in ("codeConfiguration", "environmentVariables", "livenessProbe", "readinessProbe", "requestSettings",
                 "scaleSettings", "properties"):  # fmt: skip
        if not isinstance(given.get(name, {}), dict):
            raise bad_request(f"'{name}' must be an object.")
    _check_variables(given.get("environmentVariables") or {})
    if not isinstance(given.get("modelMountPath", ""), str):
        raise bad_request("'modelMountPath' must be a text.")
    _check_assets(call, given)
    scale = given.get("scaleSettings") or {}
    if scale.get("scaleType", "Default") not in SCALE_TYPES:
        raise bad_request(f"scaleType must be one of {', '.join(SCALE_TYPES)}.")
    return {
        "endpointComputeType": "Managed",
        **{name: given.get(name, default) for name, default in SHOWN.items()},
        "scaleSettings": {"scaleType": "Default", **scale},
        "requestSettings": _request_settings(given.get("requestSettings") or {}),
        "livenessProbe": _probe_settings(given, "livenessProbe"),
        "readinessProbe": _probe_settings(given, "readinessProbe"),
    }


def _check_variables(variables: Json) -> None:
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name:
            raise bad_request(f"environmentVariables: {name!r} is no name of a variable.")
        if isinstance(value, dict | list) or "\0" in str(value):
            raise bad_request(f"environmentVariables: the value of '{name}' must be a text without null characters.")


def _check_assets(call: Call, given: Json) -> None:
    """What the deployment is made of must be there, and must say what runs."""
    code = given.get("codeConfiguration") or {}
    if code and not (code.get("codeId") and code.get("scoringScript")):
        raise bad_request("codeConfiguration needs 'codeId' and 'scoringScript'.")
    if not isinstance(code.get("scoringScript", ""), str):
        raise bad_request("codeConfiguration: 'scoringScript' must be a text.")
    named = {"environment": given.get("environmentId"), "model": given.get("model"), "code": code.get("codeId")}
    for kind, id in named.items():
        if not id or (kind == "environment" and str(id).startswith("azureml://registries/")):
            continue
        if str(id).startswith("azureml://registries/"):
            raise bad_request(
                f"The {kind} '{id}' is described here, but its files are in Azure: register a copy in the workspace and"
                " deploy that."
            )
        of_kind = re.fullmatch(rf".*/{kind}s/[^/]+/versions/[^/]+", str(id), re.IGNORECASE)
        if of_kind is None or call.control.store.get(str(id)) is None:
            raise bad_request(f"The {kind} '{short_id(str(id))}' does not exist.", "NotFound")
    if code and not given.get("environmentId"):
        raise bad_request("A deployment with a scoring script needs 'environmentId' too.")
    if not given.get("environmentId"):
        model = call.control.store.get(given.get("model") or "")
        if model is None or model.properties.get("modelType") != "mlflow_model":
            raise bad_request(
                "A deployment needs 'environmentId'; only a model of type mlflow_model is deployed without one."
            )


def _capacity(call: Call) -> int:
    sku = call.body.get("sku") or {}
    if not isinstance(sku, dict):
        raise bad_request("'sku' must be an object with a 'capacity'.")
    capacity = sku.get("capacity")
    capacity = 1 if capacity is None else capacity
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= MAX_INSTANCES:
        raise bad_request(f"instance_count (sku.capacity) must be a whole number from 1 to {MAX_INSTANCES}.")
    return capacity


def _request_settings(given: Json) -> Json:
    settings: Json = {**REQUEST_SETTINGS, **{key: value for key, value in given.items() if value is not None}}
    places = settings["maxConcurrentRequestsPerInstance"]
    if isinstance(places, bool) or not isinstance(places, int) or not 1 <= places <= MAX_INT:
        raise bad_request("maxConcurrentRequestsPerInstance must be a whole number from 1.")
    for name in ("requestTimeout", "maxQueueWait"):
        try:
            seconds(str(settings[name]))
        except ValueError as error:
            raise bad_request(f"{name}: {error}") from None
    return settings


def _probe_settings(given: Json, name: str) -> Json:
    settings = given.get(name) or {}
    for threshold in ("failureThreshold", "successThreshold"):
        value = settings.get(threshold)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_INT):
            raise bad_request(f"{name}: {threshold} must be a whole number from 1.")
    try:
        probe("/", settings)
    except (ValueError, TypeError) as error:
        raise bad_request(f"{name}: {error}") from None
    return {**PROBE_DEFAULTS, **{key: value for key, value in settings.items() if value is not None}}


@route("DELETE", DEPLOYMENT, "online deployments: delete", refuses={**BUSY, "Scaling": 409})
async def delete_deployment(call: Call) -> Response:
    endpoint = find_endpoint(call)
    deployment = call.control.store.get(call.id("onlineEndpoints/{endpoint}/deployments/{deployment}"))
    if deployment is None:
        return Response(status_code=204)
    call.check_state(deployment)
    for kind in ("traffic", "mirrorTraffic"):
        if (endpoint.properties.get(kind) or {}).get(deployment.name):
            # Guess: deleting a deployment that gets traffic is a 409
            raise ArmError(
                409, "Conflict", f"The deployment '{deployment.name}' still gets traffic ({kind}); move it away first."
            )
        # A share of 0 left behind would make every later update of the endpoint name a deployment that is not there.
        (endpoint.properties.get(kind) or {}).pop(deployment.name, None)
    call.control.store.save(endpoint)
    call.control.deployments.set_state(deployment.id, "Deleting")
    work = call.control.deployments.remove(deployment.id)
    return Response(status_code=202, headers=call.control.operations.start(deployment.id, work))


@route("POST", DEPLOYMENT + "/getLogs", "online deployments: logs")
async def get_logs(call: Call) -> Response:
    """The last lines of the container's output, or of what fetched its files (StorageInitializer)."""
    deployment = _find(call)
    container = call.body.get("containerType") or "InferenceServer"
    if not isinstance(container, str) or container not in LOGS:
        raise bad_request(f"containerType must be one of {', '.join(LOGS)}.")
    lines = call.body.get("tail")
    lines = 100 if lines is None else lines
    if isinstance(lines, bool) or not isinstance(lines, int) or lines < 1:
        raise bad_request("tail must be a whole number from 1.")
    lines = min(lines, MAX_LOG_LINES)
    return JSONResponse({"content": call.control.deployments.log_tail(deployment.id, lines, container)})


@route("GET", DEPLOYMENT + "/skus", "online deployments: list SKUs")
async def list_skus(call: Call) -> Response:
    """To how many instances the deployment can be scaled."""
    deployment = _find(call)
    scale = {
        "minimum": 1,
        "maximum": MAX_INSTANCES,
        "default": deployment.body["sku"]["capacity"],
        "scaleType": "Manual",
    }
    kind = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments"
    return JSONResponse(
        {"value": [{"resourceType": kind, "sku": {"name": "Default", "tier": "Standard"}, "capacity": scale}]}
    )
