"""What tests of jobs and computes share: the SDK's client, commands to submit, waiting for a status, plain HTTP."""

import time
from typing import Any

import requests
from azure.ai.ml import MLClient, command
from azure.ai.ml._restclient.arm_ml_service.models import JobStatus
from azure.ai.ml.entities import Environment
from azure.identity import DefaultAzureCredential

from tests.local_azure import LocalAzure

Json = dict[str, Any]
ENDED = ("Completed", "Failed", "Canceled")
IMAGE = Environment(image="mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest")


def client(azure: LocalAzure) -> MLClient:
    env = azure.environment
    return MLClient(
        DefaultAzureCredential(), env["AZURE_SUBSCRIPTION_ID"], env["AZURE_RESOURCE_GROUP"], env["AZURE_ML_WORKSPACE"]
    )


def submit(ml: MLClient, name: str, line: str, **more: Any) -> None:
    """Submit a command job, on the compute "cpu" unless another is given."""
    ml.jobs.create_or_update(command(name=name, command=line, environment=IMAGE, **{"compute": "cpu", **more}))


def status(ml: MLClient, name: str) -> str:
    return JobStatus(ml.jobs.get(name).status).value


def wait(ml: MLClient, name: str, *states: str, limit: float = 90) -> str:
    """The status of a job once it is one of ``states``, or has ended."""
    deadline = time.monotonic() + limit
    while (found := status(ml, name)) not in (states or ENDED):
        assert time.monotonic() < deadline, f"{name} is still {found}"
        assert found not in ENDED, f"{name} ended as {found}: {error_of(ml, name)}"
        time.sleep(0.2)
    return found


def error_of(ml: MLClient, name: str) -> str:
    """Why a job failed, as `jobs.stream` would say it."""
    error = ml.jobs._runs_operations.get_run_details(name).error
    return str(error.error.message) if error else ""


def failed(ml: MLClient, name: str) -> str:
    """The error of a job that fails."""
    assert wait(ml, name) == "Failed"
    return error_of(ml, name)


def completed(ml: MLClient, name: str) -> None:
    ended = wait(ml, name)
    assert ended == "Completed", error_of(ml, name)


def log(azure: LocalAzure, job: str, name: str = "std_log.txt") -> str:
    blob = azure.storage.get_blob_client("azureml", f"ExperimentRun/dcid.{job}/user_logs/{name}")
    return str(blob.download_blob().readall().decode())


class Arm:
    """Resource Manager over plain HTTP: what the SDK cannot send."""

    def __init__(self, azure: LocalAzure) -> None:
        self.url = self.address(azure)
        self.workspace = (
            f"/subscriptions/{azure.environment['AZURE_SUBSCRIPTION_ID']}/resourceGroups/local/providers"
            "/Microsoft.MachineLearningServices/workspaces/local"
        )
        token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
        self.headers = {"Authorization": f"Bearer {token}"}

    @staticmethod
    def address(azure: LocalAzure) -> str:
        return azure.environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]

    def call(self, method: str, path: str, body: Json | None = None, **query: str) -> requests.Response:
        """``path`` is below the workspace, or starts with "/"."""
        url = self.url + (path if path.startswith("/") else f"{self.workspace}/{path}")
        query = {"api-version": "2024-01-01-preview", **query}
        return requests.request(method, url, json=body, params=query, headers=self.headers, timeout=30)

    def submit(self, name: str, line: str, **more: Any) -> requests.Response:
        properties = {
            "jobType": "Command",
            "command": line,
            "environmentId": "azureml:AzureML-sklearn-1.0-ubuntu20.04-py38-cpu:33",
            "computeId": f"{self.workspace}/computes/cpu",
            **more,
        }
        return self.call("PUT", f"jobs/{name}", {"properties": properties})
