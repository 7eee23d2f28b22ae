"""The workspace, and what tells the SDK where the cloud's services are."""

from typing import TYPE_CHECKING

from starlette.responses import Response

from ..config import ACCOUNT
from ..store import Json
from .errors import not_found
from .routing import PROVIDER, WORKSPACE, Call, route, show

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


def create_workspace(control: "Control") -> None:
    """Put the workspace in place; one that is there already is brought up to date."""
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


@route("GET", WORKSPACE, "workspaces: get")
async def get_workspace(call: Call) -> Response:
    workspace = call.control.store.get(call.workspace_id)
    if workspace is None:
        raise not_found("workspace", call.params["workspace"])
    return show(call, workspace)
