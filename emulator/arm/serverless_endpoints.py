"""Serverless endpoints: a model's chat API without a compute to choose. emulator/online/serverless.py serves them."""

import re
import secrets

from starlette.responses import JSONResponse, Response

from ..online.authentication import new_secrets
from ..store import Json, Resource
from .backed_components import stand_in
from .endpoints import KEYS, asked_key
from .errors import bad_request, not_found
from .pipeline_components import REGISTRY
from .routing import WORKSPACE, Call, Coverage, listing, route, show

ENDPOINTS = WORKSPACE + "/serverlessEndpoints"
ENDPOINT = ENDPOINTS + "/{endpoint}"
MARKETPLACE = WORKSPACE + "/marketplaceSubscriptions"
# Guess: a serverless endpoint is neither changed nor deleted while it is created or deleted
BUSY = {"Creating": 409, "Updating": 409, "Deleting": 409}
MODEL = re.compile(r".*/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?")


def _endpoint(call: Call) -> Resource:
    endpoint = call.control.store.get(call.id("serverlessEndpoints/{endpoint}"))
    if endpoint is None:
        raise not_found("serverless endpoint", call.params["endpoint"])
    return endpoint


def _with_uri(call: Call, endpoint: Resource) -> Resource:
    """The endpoint with its address, which is this start's."""
    if endpoint.properties["provisioningState"] == "Succeeded":
        uri = f"{call.control.urls['arm']}/serverless/{endpoint.name}"
        endpoint.properties["inferenceEndpoint"] = {"uri": uri, "headers": {}}
    return endpoint


@route("GET", ENDPOINTS, "serverless endpoints: list")
async def list_endpoints(call: Call) -> Response:
    return listing(call, call.id("serverlessEndpoints"), prepare=lambda endpoint: _with_uri(call, endpoint))


@route("GET", ENDPOINT, "serverless endpoints: get")
async def get_endpoint(call: Call) -> Response:
    return show(call, _with_uri(call, _endpoint(call)))


@route("PUT", ENDPOINT, "serverless endpoints: create, update", refuses=BUSY)
async def put_endpoint(call: Call) -> Response:
    """Create an endpoint on a model, or change its tags."""
    id = call.id("serverlessEndpoints/{endpoint}")
    settings = call.properties.get("modelSettings") or {}
    model_id = settings.get("modelId") if isinstance(settings, dict) else None
    if not isinstance(model_id, str) or not model_id:
        raise bad_request("A serverless endpoint needs 'modelSettings.modelId'.")
    mode = str(call.properties.get("authMode") or "Key")
    if mode.lower() != "key":
        raise bad_request(f"authMode '{mode}' is not modelled by the local Azure for serverless endpoints; use Key.")
    existing = call.control.store.get(id)
    body: Json = {
        "location": call.body.get("location") or call.control.home.project.location,
        "tags": call.body.get("tags") or {},
        "sku": call.body.get("sku") or {"name": "Consumption"},
    }
    if existing is not None:
        call.check_state(existing)
        if existing.properties["modelSettings"]["modelId"] != model_id:
            # Guess: the model of a serverless endpoint cannot be changed; the documentation shows no such change
            raise bad_request("The model of a serverless endpoint cannot be changed; create another endpoint.")
        body["properties"] = existing.properties
        if existing.properties["provisioningState"] == "Succeeded":
            endpoint = call.control.store.put(id, body)
            return show(call, _with_uri(call, endpoint), 200, call.control.operations.done(id))
    known = existing.internal if existing else {**new_secrets(), **_model(call, model_id)}
    body["properties"] = {
        "authMode": "Key",
        "modelSettings": {"modelId": model_id},
        "contentSafety": None,
        "inferenceEndpoint": None,
        "marketplaceSubscriptionId": None,
        "endpointState": "Creating",
        "provisioningState": "Creating" if existing is None else "Updating",
    }
    endpoint = call.control.store.put(id, body, known)
    headers = call.control.operations.start(id, call.control.serverless.bring_up(id))
    return show(call, endpoint, 201 if existing is None else 200, headers)


def _model(call: Call, model_id: str) -> Json:
    """What to serve: a model of the workspace, or the stand-in for one of the registry. Raises ArmError."""
    if model_id.startswith(REGISTRY):
        return {"base": stand_in(call, model_id)}
    match = MODEL.fullmatch(model_id)
    if match is None:
        raise bad_request(
            f"'{model_id}' is no model: give azureml://registries/azureml/models/<name>, or the id of a model of the"
            " workspace."
        )
    versions = f"{call.workspace_id}/models/{match['name']}/versions"
    if match["version"]:
        found = call.control.store.get(f"{versions}/{match['version']}")
    else:
        found = next(iter(call.control.store.select(versions, archived=False, newest_first=True, limit=1)), None)
    if found is None:
        raise bad_request(f"The model '{model_id}' does not exist in this workspace.", "NotFound")
    if found.properties.get("modelType") != "mlflow_model":
        raise bad_request(f"The model '{model_id}' is a {found.properties.get('modelType')}; give an mlflow_model.")
    return {"model": found.id}


@route("DELETE", ENDPOINT, "serverless endpoints: delete", refuses=BUSY)
async def delete_endpoint(call: Call) -> Response:
    id = call.id("serverlessEndpoints/{endpoint}")
    endpoint = call.control.store.get(id)
    if endpoint is None:
        return Response(status_code=204)
    call.check_state(endpoint)
    return Response(status_code=202, headers=call.control.operations.start(id, call.control.serverless.remove(id)))


@route("POST", ENDPOINT + "/listKeys", "serverless endpoints: keys")
async def list_keys(call: Call) -> Response:
    return JSONResponse(_keys(_endpoint(call)))


@route("POST", ENDPOINT + "/regenerateKeys", "serverless endpoints: regenerate keys", refuses=BUSY)
async def regenerate_keys(call: Call) -> Response:
    """A new key; the old one opens nothing from now on."""
    endpoint = _endpoint(call)
    call.check_state(endpoint)
    endpoint.internal[asked_key(call)] = secrets.token_urlsafe(32)
    return JSONResponse(_keys(call.control.store.save(endpoint)))


def _keys(endpoint: Resource) -> Json:
    return {name: endpoint.internal[name] for name in KEYS.values()}


NO_MARKETPLACE = "the models here cost nothing and need no subscription"


@route("GET", MARKETPLACE, "marketplace subscriptions: list", coverage=Coverage.PARTLY, note=NO_MARKETPLACE)
async def list_subscriptions(_: Call) -> Response:
    return JSONResponse({"value": []})


@route("GET", MARKETPLACE + "/{name}", "marketplace subscriptions: get", coverage=Coverage.REFUSED, note=NO_MARKETPLACE)
async def get_subscription(call: Call) -> Response:
    raise not_found("marketplace subscription", call.params["name"])


@route(
    "PUT", MARKETPLACE + "/{name}", "marketplace subscriptions: create", coverage=Coverage.REFUSED, note=NO_MARKETPLACE
)
async def refuse_subscription(_: Call) -> Response:
    raise bad_request(
        "Nothing is bought in the local Azure: a serverless endpoint needs no marketplace subscription here. Create the"
        " endpoint at once."
    )
