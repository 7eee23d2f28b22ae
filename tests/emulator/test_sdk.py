"""The unmodified azure-ai-ml client against the local Resource Manager: what the loop uses, and how it refuses."""

import pytest
import requests
from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    AmlCompute,
    BuildContext,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
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


@pytest.fixture(scope="module")
def endpoint(ml: MLClient) -> ManagedOnlineEndpoint:
    ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="echo", auth_mode="aad_token")).result()
    return ml.online_endpoints.get("echo")


SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(418 if body == b"teapot" else 200); self.end_headers()
        self.wfile.write(os.environ["NAME"].encode() + b" " + body)
    def log_message(self, *args):
        pass
if os.environ["NAME"] == "broken":
    sys.exit("this one cannot start")
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def deploy(azure: LocalAzure, ml: MLClient, name: str) -> None:
    runs = azure.storage.get_container_client("runs")
    runs.upload_blob("build/echo/server.py", SERVER, overwrite=True)
    runs.upload_blob("build/echo/Dockerfile", 'FROM python:3.11\nCMD ["python", "server.py"]\n', overwrite=True)
    route = {"port": 8000, "path": "/"}
    environment = Environment(
        name="echo",
        version="1",
        build=BuildContext(path=f"{runs.url}/build/echo/"),
        inference_config={"liveness_route": route, "readiness_route": route, "scoring_route": route},
    )
    ml.environments.create_or_update(environment)
    ml.online_deployments.begin_create_or_update(
        ManagedOnlineDeployment(
            name=name,
            endpoint_name="echo",
            environment="azureml:echo:1",
            instance_type="Standard_DS3_v2",
            instance_count=1,
            environment_variables={"NAME": name},
        )
    ).result()


def post(endpoint: ManagedOnlineEndpoint, body: bytes, **headers: str) -> requests.Response:
    token = DefaultAzureCredential().get_token("https://ml.azure.com/.default").token
    return requests.post(
        endpoint.scoring_uri, data=body, headers={"Authorization": f"Bearer {token}", **headers}, timeout=10
    )


def test_deployments_serve_by_traffic_and_by_header(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    assert post(endpoint, b"x").status_code == 404  # no deployment gets traffic yet
    for name in ("blue", "green"):
        deploy(azure, ml, name)
    shown = ml.online_endpoints.get("echo")
    shown.traffic = {"blue": 100}
    ml.online_endpoints.begin_create_or_update(shown).result()
    assert post(endpoint, b"x").text == "blue x"
    assert post(endpoint, b"x", **{"azureml-model-deployment": "green"}).text == "green x"
    refused = post(endpoint, b"teapot")
    assert refused.status_code == 424
    assert refused.headers["ms-azureml-model-error-statuscode"] == "418"
    with pytest.raises(HttpResponseError, match="still gets traffic"):
        ml.online_deployments.begin_delete("blue", "echo").result()
    ml.online_deployments.begin_delete("green", "echo").result()
    assert post(endpoint, b"x", **{"azureml-model-deployment": "green"}).status_code == 404
    shown.traffic = {"blue": 60}
    with pytest.raises(HttpResponseError, match="60 %"):
        ml.online_endpoints.begin_create_or_update(shown).result()


def test_a_container_that_cannot_start_fails_with_its_last_lines(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    with pytest.raises(HttpResponseError, match="this one cannot start"):
        deploy(azure, ml, "broken")
    assert ml.online_deployments.get("broken", "echo").provisioning_state == "Failed"
    assert "this one cannot start" in ml.online_deployments.get_logs(name="broken", endpoint_name="echo", lines=5)


def test_nothing_is_open_without_a_valid_token(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    arm = azure.environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]
    workspace = (
        f"{arm}/subscriptions/{azure.environment['AZURE_SUBSCRIPTION_ID']}/resourceGroups/local/providers"
        "/Microsoft.MachineLearningServices/workspaces/local"
    )
    for headers in ({}, {"Authorization": "Bearer x.y.z"}):
        answer = requests.get(workspace, headers=headers, timeout=10)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "InvalidAuthenticationToken"
        assert requests.post(endpoint.scoring_uri, data=b"x", headers=headers, timeout=10).status_code == 401
    wrong_audience = DefaultAzureCredential().get_token("https://storage.azure.com/.default").token
    headers = {"Authorization": f"Bearer {wrong_audience}"}
    assert requests.get(workspace, headers=headers, timeout=10).status_code == 401
    identity = azure.environment["IDENTITY_ENDPOINT"]
    assert requests.get(identity, params={"resource": "https://ml.azure.com"}, timeout=10).status_code == 401


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
