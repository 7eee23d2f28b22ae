"""The unmodified azure-ai-ml client against the local Resource Manager: what the loop uses, and how it refuses."""

import time
from pathlib import Path

import pytest
import requests
from azure.ai.ml import Input, MLClient, Output, command
from azure.ai.ml._restclient.arm_ml_service.models import JobStatus
from azure.ai.ml.entities import (
    AmlCompute,
    Environment,
    Model,
)
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
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


def wait(ml: MLClient, name: str, limit: float = 60) -> str:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        status = JobStatus(ml.jobs.get(name).status).value
        if status in ("Completed", "Failed", "Canceled"):
            return status
        time.sleep(0.2)
    raise AssertionError(f"{name} is still {status}")


def test_a_command_job_runs_with_its_inputs_and_keeps_its_outputs(
    azure: LocalAzure, ml: MLClient, tmp_path: Path
) -> None:
    (tmp_path / "tool.sh").write_text('cat "$1" | tr a-z A-Z > "$2/out.txt"; echo "$WHO was here"')
    azure.drop("sdk/eval.jsonl", b"hello\n")
    url = f"{azure.environment['Storage__blobServiceUri']}/datasets/sdk/eval.jsonl"
    job = command(
        name="upper",
        code=tmp_path,
        command="bash tool.sh ${{inputs.text}} ${{outputs.result}} && echo ${{inputs.number}}",
        environment=IMAGE,
        compute="cpu",
        inputs={"text": Input(type="uri_file", path=url), "number": 7},
        outputs={"result": Output(type="uri_folder")},
        environment_variables={"WHO": "a test"},
    )
    created = ml.jobs.create_or_update(job)
    assert created.studio_url
    assert wait(ml, "upper") == "Completed"
    artifacts = azure.storage.get_container_client("azureml")
    log = artifacts.download_blob("ExperimentRun/dcid.upper/user_logs/std_log.txt").readall().decode()
    assert "a test was here" in log
    assert "7" in log
    outputs = azure.storage.get_container_client("azureml-blobstore-local")
    assert outputs.download_blob("azureml/upper/result/out.txt").readall() == b"HELLO\n"


def test_submitting_twice_is_submitting_once(ml: MLClient) -> None:
    def submit(text: str) -> None:
        ml.jobs.create_or_update(command(name="once", command=f"echo {text}", environment=IMAGE, compute="cpu"))

    submit("a")
    submit("a")
    with pytest.raises(HttpResponseError, match="already exists"):
        submit("b")
    assert wait(ml, "once") == "Completed"


def test_a_job_that_fails_says_so(azure: LocalAzure, ml: MLClient) -> None:
    ml.jobs.create_or_update(command(name="broken", command="echo oh no; exit 3", environment=IMAGE, compute="cpu"))
    assert wait(ml, "broken") == "Failed"
    with pytest.raises(Exception, match="exit code 3"):
        ml.jobs.stream("broken")


def test_a_job_can_be_cancelled_and_its_process_ends(ml: MLClient, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    line = f"while true; do touch {alive}; sleep 0.1; done"
    ml.jobs.create_or_update(command(name="endless", command=line, environment=IMAGE, compute="cpu"))
    deadline = time.monotonic() + 30
    while not alive.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    ml.jobs.begin_cancel("endless").result()
    assert wait(ml, "endless") == "Canceled"
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()


def test_what_does_not_exist_is_refused_before_anything_runs(ml: MLClient) -> None:
    with pytest.raises(HttpResponseError, match="compute 'computes/nowhere' does not exist"):
        ml.jobs.create_or_update(command(name="x", command="true", environment=IMAGE, compute="nowhere"))
    with pytest.raises(ResourceNotFoundError):
        ml.jobs.get("never-submitted")
    with pytest.raises(ResourceNotFoundError):
        ml.models.get("nobody", "1")
    with pytest.raises(ResourceNotFoundError):
        ml.online_endpoints.get("nowhere")


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
