"""Managed online endpoints: traffic, keys, tokens. emulator/online/authentication.py decides who may call them."""

import secrets

from starlette.responses import JSONResponse, Response

from ..online.addresses import scoring_path
from ..online.authentication import AUTH_MODES, issue_token, new_secrets
from ..store import Json, Resource
from .errors import bad_request, not_found
from .routing import WORKSPACE, Call, listing, route, show

ENDPOINT = WORKSPACE + "/onlineEndpoints/{endpoint}"
BUSY = {"Creating": 409, "Updating": 409, "Deleting": 409}
MAX_MIRRORED = 50  # percent
KEYS = {"primary": "primaryKey", "secondary": "secondaryKey"}


def find_endpoint(call: Call) -> Resource:
    endpoint = call.control.store.get(call.id("onlineEndpoints/{endpoint}"))
    if endpoint is None:
        raise not_found("online endpoint", call.params["endpoint"])
    return endpoint


def _with_uris(call: Call, endpoint: Resource) -> Resource:
    """The endpoint with its addresses; they are not stored, since they are this start's."""
    ready = endpoint.properties["provisioningState"] != "Creating"
    base = f"{call.control.urls['arm']}/inference/{endpoint.name}"
    endpoint.properties.update(
        scoringUri=base + scoring_path(call.control.store, endpoint) if ready else None,
        swaggerUri=f"{base}/swagger.json" if ready else None,
    )
    return endpoint


@route("GET", WORKSPACE + "/onlineEndpoints", "online endpoints: list")
async def list_endpoints(call: Call) -> Response:
    return listing(call, call.id("onlineEndpoints"), prepare=lambda endpoint: _with_uris(call, endpoint))


@route("GET", ENDPOINT, "online endpoints: get")
async def get_endpoint(call: Call) -> Response:
    return show(call, _with_uris(call, find_endpoint(call)))


@route("PUT", ENDPOINT, "online endpoints: create, update, traffic", refuses=BUSY)
async def put_endpoint(call: Call) -> Response:
    """Create an endpoint, or set its traffic, mirror traffic, tags and authentication."""
    id = call.id("onlineEndpoints/{endpoint}")
    existing = call.control.store.get(id)
    if existing is not None:
        call.check_state(existing)
        _check_identity(call, existing)
    endpoint = call.control.store.put(id, _body(call, id, existing), existing.internal if existing else new_secrets())
    headers = call.control.operations.start(id, _settle(call, id))
    status = 200 if existing else 201
    return show(call, _with_uris(call, endpoint), status, headers)


async def _settle(call: Call, id: str) -> None:
    """An endpoint is an entry in the store here: there is nothing to wait for."""
    endpoint = call.control.store.get(id)
    if endpoint is not None and endpoint.properties["provisioningState"] in ("Creating", "Updating"):
        endpoint.properties["provisioningState"] = "Succeeded"
        call.control.store.save(endpoint)


def _body(call: Call, id: str, existing: Resource | None) -> Json:
    given = {key: value for key, value in call.properties.items() if value is not None}
    mode = AUTH_MODES.get(str(given.get("authMode", "")).lower())
    if mode is None:
        raise bad_request(f"authMode must be one of {', '.join(AUTH_MODES.values())}.")
    traffic, mirror = _shares(call, id, given, "traffic"), _shares(call, id, given, "mirrorTraffic")
    _check_traffic(call, id, traffic)
    _check_mirror(call, id, traffic, mirror)
    access = str(given.get("publicNetworkAccess") or "Enabled")
    if access not in ("Enabled", "Disabled"):
        raise bad_request("publicNetworkAccess must be Enabled or Disabled.")
    if not isinstance(given.get("properties") or {}, dict):
        raise bad_request("'properties.properties' must be an object of texts.")
    if not isinstance(call.body.get("tags") or {}, dict):
        raise bad_request("'tags' must be an object of texts.")
    known = existing.properties.get("properties") if existing else {"azureml.onlineendpointid": id.lower()}
    return {
        "location": call.body.get("location") or call.control.home.project.location,
        "tags": call.body.get("tags") or {},
        "kind": call.body.get("kind") or "Managed",
        "identity": _identity(call),
        "properties": {
            "description": given.get("description"),
            "properties": {**(given.get("properties") or {}), **(known or {})},  # can be added, not altered
            "authMode": mode,
            "compute": None,
            "traffic": traffic,
            "mirrorTraffic": mirror,
            "publicNetworkAccess": access,
            "provisioningState": "Updating" if existing else "Creating",
        },
    }


def _identity(call: Call) -> Json:
    identity: Json = call.body.get("identity") or {"type": "SystemAssigned"}
    if not isinstance(identity, dict) or not isinstance(identity.get("type", ""), str):
        raise bad_request("'identity' must be an object with a 'type', SystemAssigned or UserAssigned.")
    if not isinstance(identity.get("userAssignedIdentities") or {}, dict):
        raise bad_request("'userAssignedIdentities' must be an object whose keys are the ids of identities.")
    project, principal = call.control.home.project, call.control.state.principal_id
    if "UserAssigned" in str(identity.get("type", "")):
        assigned = {
            id: {"principalId": principal, "clientId": principal} for id in identity.get("userAssignedIdentities") or {}
        }
        if not assigned:
            raise bad_request("An identity of type UserAssigned needs 'userAssignedIdentities'.")
        return {"type": identity["type"], "userAssignedIdentities": assigned}
    return {"type": "SystemAssigned", "principalId": principal, "tenantId": project.tenant}


def _check_identity(call: Call, existing: Resource) -> None:
    """The identity of an endpoint is immutable, as the service's documentation has it."""
    old, new = existing.body["identity"], _identity(call)
    assigned = [{id.lower() for id in each.get("userAssignedIdentities") or {}} for each in (old, new)]
    if call.body.get("identity") and (old["type"] != new["type"] or assigned[0] != assigned[1]):
        raise bad_request("The identity of an endpoint cannot be changed; create another endpoint.")


def _shares(call: Call, id: str, given: Json, name: str) -> dict[str, int]:
    """Percentages by deployment, each by the name that it was created under. Raises ArmError for anything else."""
    shares = given.get(name) or {}
    if not isinstance(shares, dict):
        raise bad_request(f"'{name}' must be an object of percentages by deployment.")
    for deployment, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int) or not 0 <= share <= 100:
            raise bad_request(f"'{name}' of '{deployment}' must be a whole number from 0 to 100, not {share!r}.")
    found = {deployment: call.control.store.get(f"{id}/deployments/{deployment}") for deployment in shares}
    known = {deployment.name if (deployment := found[key]) else key: share for key, share in shares.items()}
    if len(known) < len(shares):
        raise bad_request(f"'{name}' names a deployment twice; names compare without case.")
    return known


def _check_traffic(call: Call, id: str, traffic: dict[str, int]) -> None:
    total = sum(traffic.values())
    if total not in (0, 100):
        raise bad_request(f"The traffic adds up to {total} %; it must be 0 or 100 %.")
    _check_deployments(call, id, traffic)


def _check_mirror(call: Call, id: str, traffic: dict[str, int], mirror: dict[str, int]) -> None:
    """At most half of the requests go to one more deployment, which gets no live ones."""
    mirrored = [name for name, share in mirror.items() if share]
    if len(mirrored) > 1:
        raise bad_request(f"Traffic can be mirrored to one deployment only, not to {', '.join(mirrored)}.")
    if sum(mirror.values()) > MAX_MIRRORED:
        raise bad_request(f"At most {MAX_MIRRORED} % of the traffic can be mirrored, not {sum(mirror.values())} %.")
    for name in mirrored:
        if traffic.get(name):
            raise bad_request(f"The deployment '{name}' cannot get live and mirrored traffic at once.")
    _check_deployments(call, id, mirror)


def _check_deployments(call: Call, id: str, shares: dict[str, int]) -> None:
    for name, share in shares.items():
        deployment = call.control.store.get(f"{id}/deployments/{name}")
        if deployment is None:
            raise bad_request(f"Traffic names the deployment '{name}', which does not exist on this endpoint.")
        state = deployment.properties["provisioningState"]
        if share and state != "Succeeded":
            raise bad_request(f"Traffic cannot go to '{name}': its provisioning state is {state}.")


@route("DELETE", ENDPOINT, "online endpoints: delete", refuses=BUSY)
async def delete_endpoint(call: Call) -> Response:
    """Its deployments go with it, those that are still being created too."""
    endpoint = call.control.store.get(call.id("onlineEndpoints/{endpoint}"))
    if endpoint is None:
        return Response(status_code=204)
    call.check_state(endpoint)
    endpoint.properties["provisioningState"] = "Deleting"
    call.control.store.save(endpoint)
    headers = call.control.operations.start(endpoint.id, call.control.deployments.remove_endpoint(endpoint.id))
    return Response(status_code=202, headers=headers)


@route("POST", ENDPOINT + "/listKeys", "online endpoints: keys")
async def list_keys(call: Call) -> Response:
    endpoint = _with_keys(call)
    return JSONResponse({key: endpoint.internal[key] for key in KEYS.values()})


def asked_key(call: Call) -> str:
    """Which key is to be regenerated, by the name under which an endpoint keeps it. Raises ArmError."""
    name = KEYS.get(str(call.body.get("keyType", "")).lower())
    if name is None:
        raise bad_request("keyType must be Primary or Secondary.")
    return name


@route("POST", ENDPOINT + "/regenerateKeys", "online endpoints: regenerate keys", refuses=BUSY)
async def regenerate_keys(call: Call) -> Response:
    """A new key; the old one opens nothing from now on. A ``keyValue`` other than the present one is taken as it is."""
    endpoint = _with_keys(call)
    call.check_state(endpoint)
    name = asked_key(call)
    wanted = call.body.get("keyValue")
    # Guess: regenerateKeys takes a keyValue that differs from the present key, and else makes a key of its own
    keep = isinstance(wanted, str) and wanted and wanted != endpoint.internal[name]
    endpoint.internal[name] = wanted if keep else secrets.token_urlsafe(32)
    call.control.store.save(endpoint)
    return Response(status_code=202, headers=call.control.operations.done(endpoint.id))


def _with_keys(call: Call) -> Resource:
    endpoint = find_endpoint(call)
    if endpoint.properties["authMode"] != "Key":
        raise bad_request(f"The endpoint uses {endpoint.properties['authMode']} authentication; it has no keys.")
    return endpoint


@route("POST", ENDPOINT + "/token", "online endpoints: token")
async def get_token(call: Call) -> Response:
    endpoint = find_endpoint(call)
    if endpoint.properties["authMode"] != "AMLToken":
        mode = endpoint.properties["authMode"]
        raise bad_request(f"The endpoint uses {mode} authentication; only one with AMLToken gives tokens.")
    return JSONResponse(issue_token(endpoint))
