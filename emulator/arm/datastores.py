"""Datastores: names for containers of storage accounts. The workspace's own account is Azurite."""

import re
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from ..config import ACCOUNT, ACCOUNT_KEY
from ..storage import DATASTORES
from ..store import Json, Resource
from .errors import bad_request, not_found
from .routing import WORKSPACE, Call, Coverage, listing, route, show

if TYPE_CHECKING:
    from ..control import Control

DATASTORE = WORKSPACE + "/datastores/{name}"
# What each type must name besides the account.
CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
PLACES = {"AzureBlob": "containerName", "AzureFile": "fileShareName", "AzureDataLakeGen2": "filesystem"}


def create_datastores(control: "Control") -> None:
    """Put the workspace's own datastores in place; those that are there stay as they are."""
    for name, container in DATASTORES.items():
        id = f"{control.home.project.workspace_id}/datastores/{name}"
        if control.store.get(id) is None:
            given = {"datastoreType": "AzureBlob", "accountName": ACCOUNT, "containerName": container}
            credentials = {"credentialsType": "AccountKey"}
            body = _shown({**given, "credentials": credentials}, is_default=name == "workspaceblobstore")
            control.store.put(id, body, {"secrets": {"secretsType": "AccountKey", "key": ACCOUNT_KEY}})


def _shown(given: Json, is_default: bool) -> Json:
    return {
        "properties": {
            "description": None,
            "tags": {},
            "properties": None,
            "subscriptionId": None,
            "resourceGroup": None,
            "endpoint": "core.windows.net",
            "protocol": "https",
            "serviceDataAccessAuthIdentity": "None",
            **given,
            "isDefault": is_default,  # no client's to say
        }
    }


def _datastore(call: Call) -> Resource:
    store = call.control.store.get(call.id("datastores/{name}"))
    if store is None:
        raise not_found("datastore", call.params["name"])
    return store


@route("GET", WORKSPACE + "/datastores", "datastores: list")
async def list_datastores(call: Call) -> Response:
    only_default = call.request.query_params.get("isDefault", "").lower() == "true"
    where = {"$.properties.isDefault": True} if only_default else None
    return listing(call, call.id("datastores"), where=where)


@route("GET", DATASTORE, "datastores: get")
async def get_datastore(call: Call) -> Response:
    return show(call, _datastore(call))


@route(
    "PUT",
    DATASTORE,
    "datastores: create, update",
    coverage=Coverage.PARTLY,
    note="of any blob, file or Gen2 storage; jobs reach containers of the workspace's own account only",
)
async def put_datastore(call: Call) -> Response:
    given = {key: value for key, value in call.properties.items() if value is not None}
    kind = str(given.get("datastoreType"))
    if kind not in PLACES:
        raise bad_request(f"datastoreType '{kind}' is not modelled by the local Azure; use {', '.join(PLACES)}.")
    for needed in ("accountName", PLACES[kind]):
        if not given.get(needed) or not isinstance(given[needed], str):
            raise bad_request(f"A datastore of type {kind} needs '{needed}'.")
    credentials = given.get("credentials") or {"credentialsType": "None"}
    if not isinstance(credentials, dict):
        raise bad_request("'credentials' must be an object.")
    secrets = credentials.pop("secrets", None)  # kept apart: no answer but listSecrets shows them
    id = call.id("datastores/{name}")
    existing = call.control.store.get(id)
    place = (given["accountName"], given[PLACES[kind]])
    if existing and existing.name in DATASTORES and place != (ACCOUNT, DATASTORES[existing.name]):
        raise bad_request(f"The datastore '{existing.name}' belongs to the workspace; it cannot lead elsewhere.")
    if kind == "AzureBlob" and given["accountName"] == ACCOUNT:
        if not CONTAINER.fullmatch(given["containerName"]):
            raise bad_request(
                f"'{given['containerName']}' is no name of a container: give 3 to 63 small letters, digits and '-'."
            )
        await call.control.storage.ensure_container(given["containerName"])
    is_default = bool(existing and existing.properties["isDefault"])
    body = _shown({**given, "credentials": credentials}, is_default)
    stored = call.control.store.put(id, body, {"secrets": secrets} if secrets else None)
    return show(call, stored, 200 if existing else 201)


@route("DELETE", DATASTORE, "datastores: delete")
async def delete_datastore(call: Call) -> Response:
    """Forget the name; what is stored stays."""
    store = call.control.store.get(call.id("datastores/{name}"))
    if store is None:
        return Response(status_code=204)
    if store.name in DATASTORES:
        raise bad_request(f"The datastore '{store.name}' belongs to the workspace; it cannot be deleted.")
    call.control.store.delete(store.id)
    return Response(status_code=200)


@route("POST", DATASTORE + "/listSecrets", "datastores: secrets")
async def list_datastore_secrets(call: Call) -> Response:
    store = _datastore(call)
    ours = store.properties["datastoreType"] == "AzureBlob" and store.properties["accountName"] == ACCOUNT
    # Guess: the artefacts' store gives its key itself; azure-ai-ml 1.35 signs the addresses of logs with it
    if ours and call.body.get("expirableSecret") and store.name != "workspaceartifactstore":
        # As recorded: of the account, not of the container; the SDK opens the containers of codes with it.
        return JSONResponse({"secretsType": "Sas", "sasToken": call.control.storage.account_sas()})
    secrets = store.internal.get("secrets")
    if not secrets:
        raise bad_request(f"The datastore '{store.name}' has no credentials; it is reached with the caller's identity.")
    return JSONResponse(secrets)
