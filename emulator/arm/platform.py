"""What is not a job, an asset or an endpoint: cloud metadata, the workspace, datastores, computes, operations."""

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from ..config import ACCOUNT, ACCOUNT_KEY
from ..storage import DATASTORES
from ..store import Json, timestamp
from .errors import ArmError, bad_request, not_found
from .routing import PROVIDER, WORKSPACE, Call, page, route, show

if TYPE_CHECKING:
    from ..control import Control

LOCATION = "/subscriptions/{subscription}" + PROVIDER + "/locations/{location}"


def cloud_metadata(arm_url: str) -> Json:
    """The answer of ``/metadata/endpoints``, by which azure-ai-ml learns of a cloud. It needs no token."""
    return {
        # Any name but AzureCloud, for which the SDK has constants. The portal's host decides the token audience that
        # it asks for: https://ml.azure.com.
        "name": "LocalAzure",
        "portal": "https://portal.azure.com/",
        "resourceManager": f"{arm_url}/",
        "authentication": {
            "loginEndpoint": "https://login.microsoftonline.com/",
            "audiences": ["https://management.core.windows.net/", "https://management.azure.com/"],
            "tenant": "common",
            "identityProvider": "AAD",
        },
        "suffixes": {"storage": "core.windows.net", "acrLoginServer": "azurecr.io"},
    }


def discovery(arm_url: str) -> Json:
    """The answer of the workspace's discoveryUrl: where its other services are. It needs no token either."""
    return dict.fromkeys(("api", "history", "experimentation", "mlflow"), arm_url)


def create_platform(control: "Control") -> None:
    """Put the workspace and its datastores in place; what is there already is brought up to date."""
    project, arm_url = control.home.project, control.urls["arm"]
    group = f"/subscriptions/{project.subscription}/resourceGroups/{project.resource_group}/providers"
    control.store.put(
        project.workspace_id,
        {
            "location": project.location,
            "kind": "Default",
            "tags": {},
            "sku": {"name": "Basic", "tier": "Basic"},
            "identity": {
                "type": "SystemAssigned",
                "principalId": control.state.principal_id,
                "tenantId": project.tenant,
            },
            "properties": {
                "friendlyName": project.workspace,
                "description": "The workspace of the local Azure",
                "storageAccount": f"{group}/Microsoft.Storage/storageAccounts/{ACCOUNT}",
                "workspaceId": "00000000-0000-0000-0000-0000000000aa",
                "discoveryUrl": f"{arm_url}/discovery",
                "mlFlowTrackingUri": control.urls["mlflow"],
                "provisioningState": "Succeeded",
                "publicNetworkAccess": "Enabled",
                "tenantId": project.tenant,
                "hbiWorkspace": False,
                "v1LegacyMode": False,
            },
        },
    )
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


@route("GET", WORKSPACE)
async def get_workspace(call: Call) -> Response:
    workspace = call.control.store.get(call.workspace_id)
    if workspace is None:
        raise not_found("workspace", call.params["workspace"])
    return show(call, workspace)


@route("GET", WORKSPACE + "/datastores")
async def list_datastores(call: Call) -> Response:
    stores = list(call.control.store.children(call.id("datastores")))
    if call.request.query_params.get("isDefault", "").lower() == "true":
        stores = [store for store in stores if store.properties["isDefault"]]
    return page(call, stores)


@route("GET", WORKSPACE + "/datastores/{name}")
async def get_datastore(call: Call) -> Response:
    store = call.control.store.get(call.id("datastores/{name}"))
    if store is None:
        raise not_found("datastore", call.params["name"])
    return show(call, store)


@route("POST", WORKSPACE + "/datastores/{name}/listSecrets")
async def list_datastore_secrets(call: Call) -> Response:
    store = call.control.store.get(call.id("datastores/{name}"))
    if store is None:
        raise not_found("datastore", call.params["name"])
    if call.body.get("expirableSecret"):
        sas = call.control.storage.sas(store.properties["containerName"]).partition("?")[2]
        return JSONResponse({"secretsType": "Sas", "sasToken": sas})
    return JSONResponse({"secretsType": "AccountKey", "key": ACCOUNT_KEY})


@route("GET", WORKSPACE + "/computes")
async def list_computes(call: Call) -> Response:
    return page(call, list(call.control.store.children(call.id("computes"))))


@route("GET", WORKSPACE + "/computes/{name}")
async def get_compute(call: Call) -> Response:
    compute = call.control.store.get(call.id("computes/{name}"))
    if compute is None:
        raise ArmError(404, "ComputeNotFound", f"Compute with name {call.params['name']} could not be found.")
    return show(call, compute)


@route("PUT", WORKSPACE + "/computes/{name}")
async def put_compute(call: Call) -> Response:
    """A cluster. Its nodes are this machine: max_instances bounds how many jobs run at once."""
    properties = call.properties
    if properties.get("computeType") != "AmlCompute":
        raise bad_request(
            f"computeType '{properties.get('computeType')}' is not modelled by the local Azure; use AmlCompute."
        )
    inner = properties.get("properties") or {}
    scale = inner.get("scaleSettings") or {}
    if int(scale.get("maxNodeCount") or 0) < 1:
        raise bad_request("scaleSettings.maxNodeCount must be at least 1.")
    body = {
        "location": call.body.get("location") or call.control.home.project.location,
        "tags": call.body.get("tags") or {},
        "properties": {
            **properties,
            "computeLocation": call.control.home.project.location,
            "provisioningState": "Succeeded",
            "isAttachedCompute": False,
            "properties": {
                **inner,
                "allocationState": "Steady",
                "allocationStateTransitionTime": timestamp(),
                "currentNodeCount": 0,
                "targetNodeCount": 0,
                "vmPriority": inner.get("vmPriority") or "Dedicated",
            },
        },
    }
    existed = call.control.store.get(call.id("computes/{name}")) is not None
    compute = call.control.store.put(call.id("computes/{name}"), body)
    return show(call, compute, 200 if existed else 201, call.control.operations.done(compute.id))


@route("DELETE", WORKSPACE + "/computes/{name}")
async def delete_compute(call: Call) -> Response:
    id = call.id("computes/{name}")
    if not call.control.store.delete(id):
        raise ArmError(404, "ComputeNotFound", f"Compute with name {call.params['name']} could not be found.")
    return Response(status_code=202, headers=call.control.operations.done(id))


@route("GET", LOCATION + "/mfeOperationsStatus/{operation}")
async def operation_status(call: Call) -> Response:
    operation = call.control.store.operation(call.params["operation"])
    if operation is None:
        raise ArmError(404, "NotFound", f"Operation {call.params['operation']} does not exist.")
    answer: Json = {
        "name": call.params["operation"],
        "status": operation["status"],
        "startTime": operation["started"],
    }
    if operation["ended"]:
        answer["endTime"] = operation["ended"]
        answer["percentComplete"] = 100
    if operation["error"]:
        answer["error"] = operation["error"]
    # Retry-After must be 1: without it the SDK's poller sleeps 30 s, and 0 counts as absent.
    return JSONResponse(answer, headers={"Retry-After": "1"})
