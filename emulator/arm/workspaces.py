"""The workspace, and what tells the SDK where the cloud's services are."""

from typing import TYPE_CHECKING

from starlette.responses import Response

from ..config import ACCOUNT
from ..store import Json, Resource
from .errors import ArmError, bad_request, not_found
from .routing import PROVIDER, WORKSPACE, Call, Coverage, page, route, show

if TYPE_CHECKING:
    from ..control import Control

GROUP = "/subscriptions/{subscription}/resourceGroups/{group}" + PROVIDER + "/workspaces"
SUBSCRIPTION = "/subscriptions/{subscription}" + PROVIDER + "/workspaces"
TEMPLATE = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Resources/deployments/{template}"
# What a PATCH may change; the rest of a workspace is emulator.yaml's affair.
MUTABLE = ("description", "friendlyName", "publicNetworkAccess", "imageBuildCompute")


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


def create_workspace(control: "Control") -> None:
    """Put the workspace in place; one that is there keeps what callers changed of it."""
    project, arm_url = control.home.project, control.urls["arm"]
    group = f"/subscriptions/{project.subscription}/resourceGroups/{project.resource_group}/providers"
    existing = control.store.get(project.workspace_id)
    changed = {key: existing.properties[key] for key in MUTABLE if key in existing.properties} if existing else {}
    control.store.put(
        project.workspace_id,
        {
            "location": project.location,
            "kind": "Default",
            "tags": existing.body.get("tags") or {} if existing else {},
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
                **changed,
            },
        },
    )


def _workspace(call: Call) -> Resource:
    workspace = call.control.store.get(call.workspace_id)
    if workspace is None:
        raise not_found("workspace", call.control.home.project.workspace)
    return workspace


@route("GET", SUBSCRIPTION, "workspaces: list of the subscription")
@route("GET", GROUP, "workspaces: list of the resource group")
async def list_workspaces(call: Call) -> Response:
    kinds = call.request.query_params.get("kind", "default").lower().split(",")
    return page(call, [_workspace(call)] if "default" in kinds else [])


@route("GET", WORKSPACE, "workspaces: get")
async def get_workspace(call: Call) -> Response:
    return show(call, _workspace(call))


@route("PATCH", WORKSPACE, "workspaces: update", coverage=Coverage.PARTLY, note=f"tags, {', '.join(MUTABLE)}")
async def update_workspace(call: Call) -> Response:
    workspace = _workspace(call)
    if isinstance(call.body.get("tags"), dict):
        workspace.body["tags"] = call.body["tags"]
    given = call.body.get("properties") or {}
    if not isinstance(given, dict):
        raise bad_request("'properties' must be an object.")
    workspace.properties.update({key: given[key] for key in MUTABLE if given.get(key) is not None})
    workspace = call.control.store.save(workspace)
    return show(call, workspace, 202, call.control.operations.done(workspace.id))


REFUSAL = "emulator.yaml names the one workspace that there is"


@route("DELETE", WORKSPACE, "workspaces: delete", coverage=Coverage.REFUSED, note=REFUSAL)
@route("PUT", TEMPLATE, "workspaces: create", coverage=Coverage.REFUSED, note=REFUSAL)
async def refuse(_: Call) -> Response:
    """``workspaces.begin_create`` of a name that is not there deploys a template."""
    raise ArmError(
        403,
        "AuthorizationFailed",
        "The local Azure has one workspace, which emulator.yaml names; it creates and deletes none. Start another"
        " local Azure (EMULATOR_HOME) for another workspace.",
    )
