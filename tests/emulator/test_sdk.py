"""The unmodified azure-ai-ml client against the local Resource Manager: what the loop uses, and how it refuses."""

import pytest
import requests
from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    AmlCompute,
    Environment,
    Model,
)
from azure.core.exceptions import HttpResponseError
from azure.identity import DefaultAzureCredential

from tests.local_azure import LocalAzure

IMAGE = Environment(image="mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest")


@pytest.fixture(scope="module")
def ml(azure: LocalAzure) -> MLClient:
    env = azure.environment
    client = MLClient(
        DefaultAzureCredential(), env["AZURE_SUBSCRIPTION_ID"], env["AZURE_RESOURCE_GROUP"], env["AZURE_ML_WORKSPACE"]
    )
    client.compute.begin_create_or_update(AmlCompute(name="cpu", size="Standard_DS3_v2", max_instances=2)).result()
    return client


def test_models_count_up_and_keep_their_content(ml: MLClient) -> None:
    def register(uri: str, version: str | None = None) -> Model:
        return ml.models.create_or_update(Model(name="m", version=version, path=uri, type="mlflow_model"))

    base = "azureml://datastores/workspaceblobstore/paths"
    assert register(f"{base}/one").version == "1"
    assert register(f"{base}/two").version == "2"
    assert ml.models.get("m", label="latest").version == "2"
    with pytest.raises(HttpResponseError, match="already exists"):
        register(f"{base}/three", "2")


def test_nothing_is_open_without_a_valid_token(azure: LocalAzure, ml: MLClient) -> None:
    arm = azure.environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]
    workspace = (
        f"{arm}/subscriptions/{azure.environment['AZURE_SUBSCRIPTION_ID']}/resourceGroups/local/providers"
        "/Microsoft.MachineLearningServices/workspaces/local"
    )
    for headers in ({}, {"Authorization": "Bearer x.y.z"}):
        answer = requests.get(workspace, headers=headers, timeout=10)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "InvalidAuthenticationToken"
    wrong_audience = DefaultAzureCredential().get_token("https://storage.azure.com/.default").token
    headers = {"Authorization": f"Bearer {wrong_audience}"}
    assert requests.get(workspace, headers=headers, timeout=10).status_code == 401
    identity = azure.environment["IDENTITY_ENDPOINT"]
    assert requests.get(identity, params={"resource": "https://ml.azure.com"}, timeout=10).status_code == 401


def test_a_token_for_the_app_registration_opens_the_chat_and_no_other_token_does(azure: LocalAzure) -> None:
    models = f"{azure.environment['APP_BASE_URL']}/api/v1/models"

    def ask(token: str) -> requests.Response:
        return requests.get(models, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    token = DefaultAzureCredential().get_token("api://chat/.default").token
    assert ask(token).json()["object"] == "list"
    other = ask(DefaultAzureCredential().get_token("https://ml.azure.com/.default").token)
    assert (other.status_code, other.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "for api://chat" in other.json()["error"]["message"]
    header, claims, signature = token.split(".")
    assert ask(f"{header}.{claims}.{signature[::-1]}").status_code == 401
    line = next(line for line in azure.log("functions").splitlines() if "chat request=" in line)
    assert "key=entra:" in line
    assert token not in azure.log("functions")


def test_bad_requests_have_azures_shape_and_help(azure: LocalAzure) -> None:
    arm = azure.environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]
    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
    headers = {"Authorization": f"Bearer {token}"}
    base = f"{arm}/subscriptions/{azure.environment['AZURE_SUBSCRIPTION_ID']}/resourceGroups/local/providers"
    jobs = f"{base}/Microsoft.MachineLearningServices/workspaces/local/jobs/x"
    for body, status, named in (
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "JSON object"),
        (b"{}", 400, "properties"),
        (b'{"properties": {"jobType": "Sweep"}}', 400, "Sweep"),
    ):
        answer = requests.put(jobs, data=body, headers=headers, timeout=10)
        assert answer.status_code == status
        assert named in answer.json()["error"]["message"]
    unknown = requests.get(f"{base}/Microsoft.Quantum/workspaces", headers=headers, timeout=10)
    assert unknown.status_code == 404
    assert "docs/emulator.md" in unknown.json()["error"]["message"]
    # ARM ids compare without case.
    assert requests.get(
        jobs.replace("resourceGroups", "RESOURCEGROUPS").rsplit("/", 2)[0], headers=headers, timeout=10
    ).ok
