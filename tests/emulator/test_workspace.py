"""The workspace and its datastores, through the unmodified client."""

import subprocess

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.constants import Scope
from azure.ai.ml.entities import (
    AccountKeyConfiguration,
    AzureBlobDatastore,
    AzureDataLakeGen2Datastore,
    AzureFileDatastore,
    Workspace,
)
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import AzureCliCredential

from tests.local_azure import LocalAzure


def test_the_workspace_is_listed_and_found(azure: LocalAzure, ml: MLClient) -> None:
    name = azure.environment["AZURE_ML_WORKSPACE"]
    assert ml.workspaces.get(name).name == name
    assert [workspace.name for workspace in ml.workspaces.list()] == [name]
    assert [workspace.name for workspace in ml.workspaces.list(scope=Scope.SUBSCRIPTION)] == [name]
    with pytest.raises(ResourceNotFoundError, match="was not found"):
        ml.workspaces.get("another")


def test_the_workspace_keeps_its_changes(azure: LocalAzure, ml: MLClient) -> None:
    name = azure.environment["AZURE_ML_WORKSPACE"]
    workspace = ml.workspaces.get(name)
    workspace.tags = {"team": "data"}
    workspace.description = "changed"
    updated = ml.workspaces.begin_update(workspace).result()
    assert updated.tags == {"team": "data"}
    assert ml.workspaces.get(name).description == "changed"


def test_another_workspace_is_refused_with_the_reason(ml: MLClient) -> None:
    with pytest.raises(Exception, match=r"one workspace, which emulator\.yaml names"):
        ml.workspaces.begin_create(Workspace(name="second", location="westeurope")).result()


def test_a_workspace_has_a_default_datastore_and_one_for_artefacts(ml: MLClient) -> None:
    assert ml.datastores.get_default().name == "workspaceblobstore"
    assert {"workspaceblobstore", "workspaceartifactstore"} <= {store.name for store in ml.datastores.list()}


def test_a_datastore_is_created_changed_and_deleted_and_its_key_is_shown_only_on_request(ml: MLClient) -> None:
    for store in (
        AzureBlobDatastore(
            name="elsewhere",
            account_name="other",
            container_name="c",
            credentials=AccountKeyConfiguration(account_key="a2V5"),
        ),
        AzureFileDatastore(
            name="files",
            account_name="other",
            file_share_name="s",
            credentials=AccountKeyConfiguration(account_key="a2V5"),
        ),
        AzureDataLakeGen2Datastore(name="lake", account_name="other", filesystem="f"),
    ):
        assert ml.datastores.create_or_update(store).name == store.name
    assert ml.datastores.get("elsewhere").credentials.account_key is None
    assert ml.datastores.get("elsewhere", include_secrets=True).credentials.account_key == "a2V5"
    changed = ml.datastores.get("elsewhere", include_secrets=True)
    changed.description = "changed"
    assert ml.datastores.create_or_update(changed).description == "changed"
    ml.datastores.delete("elsewhere")
    with pytest.raises(ResourceNotFoundError):
        ml.datastores.get("elsewhere")
    with pytest.raises(HttpResponseError, match="belongs to the workspace"):
        ml.datastores.delete("workspaceblobstore")


def test_a_script_with_the_command_line_s_credential_is_let_in(azure: LocalAzure) -> None:
    environment = azure.environment
    client = MLClient(
        AzureCliCredential(),
        environment["AZURE_SUBSCRIPTION_ID"],
        environment["AZURE_RESOURCE_GROUP"],
        environment["AZURE_ML_WORKSPACE"],
    )
    assert client.workspaces.get(environment["AZURE_ML_WORKSPACE"]).location


def test_other_commands_of_the_command_line_are_refused_with_a_sentence(azure: LocalAzure) -> None:
    done = subprocess.run(["az", "ml", "job", "list"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "use the Python SDK" in done.stderr
