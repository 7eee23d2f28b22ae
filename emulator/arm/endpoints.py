"""Managed online endpoints and their deployments. What serves them is emulator/deployments.py."""

import secrets

from starlette.responses import JSONResponse, Response

from ..store import Json, Resource
from .errors import ArmError, bad_request, not_found
from .routing import WORKSPACE, Call, page, route, short_id, show

ENDPOINT = WORKSPACE + "/onlineEndpoints/{endpoint}"
DEPLOYMENT = ENDPOINT + "/deployments/{deployment}"
BUSY = ("Creating", "Updating", "Deleting")
AUTH_MODES = {"key": "Key", "amltoken": "AMLToken", "aadtoken": "AADToken"}


def _endpoint(call: Call) -> Resource:
    endpoint = call.control.store.get(call.id("onlineEndpoints/{endpoint}"))
    if endpoint is None:
        raise not_found("online endpoint", call.params["endpoint"])
    return endpoint


def _deployment(call: Call) -> Resource:
    deployment = call.control.store.get(call.id("onlineEndpoints/{endpoint}/deployments/{deployment}"))
    if deployment is None:
        raise not_found("deployment", f"{call.params['endpoint']}/{call.params['deployment']}")
    return deployment


def _with_uris(call: Call, endpoint: Resource) -> Resource:
    """The endpoint with its addresses; they are not stored, since they are this start's."""
    base = f"{call.control.urls['arm']}/inference/{endpoint.name}"
    endpoint.properties.update(scoringUri=f"{base}/score", swaggerUri=f"{base}/swagger.json")
    return endpoint


@route("GET", WORKSPACE + "/onlineEndpoints", "online endpoints: list")
async def list_endpoints(call: Call) -> Response:
    found = call.control.store.children(call.id("onlineEndpoints"))
    return page(call, [_with_uris(call, endpoint) for endpoint in found])


@route("GET", ENDPOINT, "online endpoints: get")
async def get_endpoint(call: Call) -> Response:
    return show(call, _with_uris(call, _endpoint(call)))


@route("PUT", ENDPOINT, "online endpoints: create, update, traffic")
async def put_endpoint(call: Call) -> Response:
    """Create an endpoint, or set its traffic, tags and authentication."""
    id = call.id("onlineEndpoints/{endpoint}")
    given = {key: value for key, value in call.properties.items() if value is not None}
    mode = AUTH_MODES.get(str(given.get("authMode", "")).lower())
    if mode is None:
        raise bad_request(f"authMode must be one of {', '.join(AUTH_MODES.values())}.")
    existing = call.control.store.get(id)
    _check_traffic(call, id, given.get("traffic") or {})
    body = {
        "location": call.body.get("location") or call.control.home.project.location,
        "tags": call.body.get("tags") or {},
        "kind": call.body.get("kind") or "Managed",
        "identity": _identity(call),
        "properties": {
            "description": None,
            "traffic": {},
            "mirrorTraffic": {},
            "properties": {},
            "publicNetworkAccess": "Enabled",
            **given,
            "authMode": mode,
            "provisioningState": "Succeeded",
        },
    }
    keys = (existing.internal if existing else {}) or {
        "primaryKey": secrets.token_urlsafe(32),
        "secondaryKey": secrets.token_urlsafe(32),
    }
    endpoint = call.control.store.put(id, body, keys)
    return show(call, _with_uris(call, endpoint), 200 if existing else 201, call.control.operations.done(id))


def _identity(call: Call) -> Json:
    identity: Json = call.body.get("identity") or {"type": "SystemAssigned"}
    project, principal = call.control.home.project, call.control.state.principal_id
    if "UserAssigned" in identity.get("type", ""):
        assigned = {
            id: {"principalId": principal, "clientId": principal} for id in identity.get("userAssignedIdentities") or {}
        }
        return {**identity, "userAssignedIdentities": assigned}
    return {**identity, "principalId": principal, "tenantId": project.tenant}


def _check_traffic(call: Call, id: str, traffic: Json) -> None:
    total = sum(int(share) for share in traffic.values())
    if total not in (0, 100) or any(int(share) < 0 for share in traffic.values()):
        raise bad_request(f"The traffic adds up to {total} %; it must be 0 or 100 %.")
    for name, share in traffic.items():
        deployment = call.control.store.get(f"{id}/deployments/{name}")
        if deployment is None:
            raise bad_request(f"Traffic names the deployment '{name}', which does not exist on this endpoint.")
        if int(share) and deployment.properties["provisioningState"] != "Succeeded":
            state = deployment.properties["provisioningState"]
            raise bad_request(f"Traffic cannot go to '{name}': its provisioning state is {state}.")


@route("DELETE", ENDPOINT, "online endpoints: delete")
async def delete_endpoint(call: Call) -> Response:
    id = call.id("onlineEndpoints/{endpoint}")
    if call.control.store.get(id) is None:
        return Response(status_code=204)
    for deployment in list(call.control.store.children(f"{id}/deployments")):
        await call.control.deployments.remove(deployment.id)
    call.control.store.delete(id)
    return Response(status_code=202, headers=call.control.operations.done(id))


@route("POST", ENDPOINT + "/listKeys", "online endpoints: keys")
async def list_keys(call: Call) -> Response:
    endpoint = _endpoint(call)
    if endpoint.properties["authMode"] != "Key":
        raise bad_request(f"The endpoint uses {endpoint.properties['authMode']} authentication; it has no keys.")
    return JSONResponse({key: endpoint.internal[key] for key in ("primaryKey", "secondaryKey")})


@route("POST", ENDPOINT + "/token", "online endpoints: token")
async def get_token(call: Call) -> Response:
    _endpoint(call)
    token, expires = call.control.authority.issue("https://ml.azure.com")
    return JSONResponse(
        {
            "accessToken": token,
            "expiryTimeUtc": expires,
            "refreshAfterTimeUtc": expires - 600,
            "tokenType": "Bearer",
        }
    )


@route("GET", ENDPOINT + "/deployments", "online deployments: list")
async def list_deployments(call: Call) -> Response:
    endpoint = _endpoint(call)
    return page(call, list(call.control.store.children(f"{endpoint.id}/deployments")))


@route("GET", DEPLOYMENT, "online deployments: get")
async def get_deployment(call: Call) -> Response:
    _endpoint(call)
    return show(call, _deployment(call))


@route("PUT", DEPLOYMENT, "online deployments: create, update")
async def put_deployment(call: Call) -> Response:
    """Create or replace a deployment; it serves once its readiness probe has answered."""
    _endpoint(call)
    given = {key: value for key, value in call.properties.items() if value is not None}
    if not given.get("environmentId"):
        raise bad_request("A deployment needs 'environmentId' here; MLflow no-code deployments are not modelled yet.")
    if given.get("codeConfiguration"):
        raise bad_request(
            "Deployments with a scoring script (codeConfiguration) are not modelled yet; use a container."
        )
    for field, kind in (("environmentId", "environment"), ("model", "model")):
        if given.get(field) and call.control.store.get(given[field]) is None:
            raise bad_request(f"The {kind} '{short_id(given[field])}' does not exist.", "NotFound")
    id = call.id("onlineEndpoints/{endpoint}/deployments/{deployment}")
    existing = call.control.store.get(id)
    if existing is not None and (state := existing.properties["provisioningState"]) in BUSY:
        raise ArmError(
            409,
            "Conflict",
            f"The deployment '{existing.name}' has another operation in progress ({state}); wait for its end.",
            "ResourceOperationInProgress",
        )
    body = {
        "location": call.body.get("location") or call.control.home.project.location,
        "tags": call.body.get("tags") or {},
        "sku": call.body.get("sku") or {"name": "Default", "capacity": 1},
        "properties": {
            "endpointComputeType": "Managed",
            "scaleSettings": {"scaleType": "Default"},
            "environmentVariables": {},
            "properties": {},
            **given,
            "provisioningState": "Creating" if existing is None else "Updating",
        },
    }
    deployment = call.control.store.put(id, body)
    work = call.control.deployments.bring_up(deployment.id)
    return show(call, deployment, 201 if existing is None else 200, call.control.operations.start(id, work))


@route("DELETE", DEPLOYMENT, "online deployments: delete")
async def delete_deployment(call: Call) -> Response:
    endpoint = _endpoint(call)
    name = call.params["deployment"]
    if int((endpoint.properties.get("traffic") or {}).get(name, 0)):
        raise bad_request(f"The deployment '{name}' still gets traffic; move it away before deleting.")
    id = call.id("onlineEndpoints/{endpoint}/deployments/{deployment}")
    if call.control.store.get(id) is None:
        return Response(status_code=204)
    await call.control.deployments.remove(id)
    return Response(status_code=202, headers=call.control.operations.done(id))


@route("POST", DEPLOYMENT + "/getLogs", "online deployments: logs")
async def get_logs(call: Call) -> Response:
    deployment = _deployment(call)
    try:
        lines = int(call.body.get("tail") or 100)
    except ValueError:
        raise ArmError(400, "UserError", "tail must be a whole number.", "BadArgument") from None
    return JSONResponse({"content": call.control.deployments.log_tail(deployment.id, lines)})
