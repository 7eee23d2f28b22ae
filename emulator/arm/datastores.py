"""Datastores: names for containers of the storage account."""

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from ..config import ACCOUNT, ACCOUNT_KEY
from ..storage import DATASTORES
from .errors import not_found
from .routing import WORKSPACE, Call, page, route, show

if TYPE_CHECKING:
    from ..control import Control


def create_datastores(control: "Control") -> None:
    """Put the workspace's own datastores in place."""
    project = control.home.project
    for name, container in DATASTORES.items():
        control.store.put(
            f"{project.workspace_id}/datastores/{name}",
            {
                "properties": {
                    "datastoreType": "AzureBlob",
                    "accountName": ACCOUNT,
                    "containerName": container,
                    "endpoint": "core.windows.net",
                    "protocol": "https",
                    "credentials": {"credentialsType": "AccountKey"},
                    "isDefault": name == "workspaceblobstore",
                    "description": None,
                    "tags": {},
                    "properties": {},
                    "serviceDataAccessAuthIdentity": "None",
                }
            },
        )


@route("GET", WORKSPACE + "/datastores", "datastores: list")
async def list_datastores(call: Call) -> Response:
    stores = list(call.control.store.children(call.id("datastores")))
    if call.request.query_params.get("isDefault", "").lower() == "true":
        stores = [store for store in stores if store.properties["isDefault"]]
    return page(call, stores)


@route("GET", WORKSPACE + "/datastores/{name}", "datastores: get")
async def get_datastore(call: Call) -> Response:
    store = call.control.store.get(call.id("datastores/{name}"))
    if store is None:
        raise not_found("datastore", call.params["name"])
    return show(call, store)


@route("POST", WORKSPACE + "/datastores/{name}/listSecrets", "datastores: secrets")
async def list_datastore_secrets(call: Call) -> Response:
    store = call.control.store.get(call.id("datastores/{name}"))
    if store is None:
        raise not_found("datastore", call.params["name"])
    if call.body.get("expirableSecret"):
        sas = call.control.storage.sas(store.properties["containerName"]).partition("?")[2]
        return JSONResponse({"secretsType": "Sas", "sasToken": sas})
    return JSONResponse({"secretsType": "AccountKey", "key": ACCOUNT_KEY})
