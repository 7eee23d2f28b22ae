"""Every environment variable that the function app reads, in one place, typed."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

TENANT_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class SettingsError(ValueError):
    """A required setting is missing or malformed; the message names it and says what it should be."""


@dataclass(frozen=True)
class Settings:
    """The app settings. ``Storage__*`` follow the naming of Azure Functions' identity-based connections,
    so the queue trigger and our own clients read the same ones."""

    blob_service_uri: str
    queue_service_uri: str
    workspace_blob_service_uri: str
    subscription_id: str
    resource_group: str
    workspace: str
    datasets_container: str
    runs_container: str
    reports_container: str
    runs_queue: str
    training_compute: str
    training_instance_type: str
    training_image: str
    training_gpu_image: str
    training_gpu_index: str
    serving_instance_type: str
    training_identity_id: str
    endpoint_identity_id: str
    chat_api_keys: str
    chat_entra_audience: str
    chat_entra_issuer: str
    chat_entra_role: str
    operator_api_keys: str
    outcome_topic_endpoint: str
    content_safety_endpoint: str

    @property
    def workspace_id(self) -> str:
        """The workspace's id in Resource Manager."""
        group = f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
        return f"{group}/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace}"


def read_settings(env: Mapping[str, str]) -> Settings:
    """Build the settings from ``env``. Raises SettingsError with one sentence that names the variable."""

    def required(name: str, example: str) -> str:
        value = env.get(name, "").strip()
        if not value:
            raise SettingsError(f"The app setting {name} is missing; set it to {example}.")
        return value

    def url(name: str, value: str) -> str:
        if not value.startswith("https://"):
            raise SettingsError(
                f"The app setting {name} must be an https:// URL (nothing goes in clear); it is {value!r}."
            )
        return value.rstrip("/")

    blob = url(
        "Storage__blobServiceUri",
        required("Storage__blobServiceUri", "the storage account's blob URL, https://<account>.blob.core.windows.net"),
    )
    queue = url(
        "Storage__queueServiceUri",
        required(
            "Storage__queueServiceUri", "the storage account's queue URL, https://<account>.queue.core.windows.net"
        ),
    )
    workspace_blob = url("WorkspaceStorage__blobServiceUri", env.get("WorkspaceStorage__blobServiceUri", "") or blob)
    gpu_index = env.get("TRAINING_GPU_INDEX", "").strip()
    outcome_topic = env.get("OUTCOME_TOPIC_ENDPOINT", "").strip()
    content_safety = env.get("CONTENT_SAFETY_ENDPOINT", "").strip()
    audience = env.get("CHAT_ENTRA_AUDIENCE", "").strip()
    issuer = env.get("CHAT_ENTRA_ISSUER", "").strip()
    role = env.get("CHAT_ENTRA_ROLE", "").strip()
    _check_entra(audience, issuer, role)
    return Settings(
        blob_service_uri=blob,
        queue_service_uri=queue,
        workspace_blob_service_uri=workspace_blob,
        subscription_id=required("AZURE_SUBSCRIPTION_ID", "the subscription of the Azure ML workspace"),
        resource_group=required("AZURE_RESOURCE_GROUP", "the resource group of the Azure ML workspace"),
        workspace=required("AZURE_ML_WORKSPACE", "the name of the Azure ML workspace"),
        datasets_container=env.get("DATASETS_CONTAINER", "datasets"),
        runs_container=env.get("RUNS_CONTAINER", "runs"),
        reports_container=env.get("REPORTS_CONTAINER", "reports"),
        runs_queue=env.get("RUNS_QUEUE", "runs"),
        training_compute=env.get("TRAINING_COMPUTE", "training"),
        training_instance_type=env.get("TRAINING_INSTANCE_TYPE", "Standard_E16s_v3"),
        training_image=env.get("TRAINING_IMAGE", "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest"),
        training_gpu_image=env.get(
            "TRAINING_GPU_IMAGE", "mcr.microsoft.com/azureml/openmpi5.0-cuda12.6-ubuntu24.04:latest"
        ),
        training_gpu_index=gpu_index and url("TRAINING_GPU_INDEX", gpu_index),
        serving_instance_type=env.get("SERVING_INSTANCE_TYPE", "Standard_E4s_v3"),
        training_identity_id=env.get("TRAINING_IDENTITY_ID", ""),
        endpoint_identity_id=env.get("ENDPOINT_IDENTITY_ID", ""),
        chat_api_keys=env.get("CHAT_API_KEYS", ""),
        chat_entra_audience=audience,
        chat_entra_issuer=issuer and url("CHAT_ENTRA_ISSUER", issuer),
        chat_entra_role=role,
        operator_api_keys=env.get("OPERATOR_API_KEYS", ""),
        outcome_topic_endpoint=outcome_topic and url("OUTCOME_TOPIC_ENDPOINT", outcome_topic),
        content_safety_endpoint=content_safety and url("CONTENT_SAFETY_ENDPOINT", content_safety),
    )


def _check_entra(audience: str, issuer: str, role: str) -> None:
    """Half of these settings could look like a door that is open, or one that is watched."""
    for name, value, other in (
        ("CHAT_ENTRA_AUDIENCE", audience.strip(", "), "CHAT_ENTRA_ISSUER" if issuer else "CHAT_ENTRA_ROLE"),
        ("CHAT_ENTRA_ISSUER", issuer, "CHAT_ENTRA_AUDIENCE" if audience else "CHAT_ENTRA_ROLE"),
    ):
        if not value and (audience or issuer or role):
            raise SettingsError(f"The app setting {name} is missing, without which {other} means nothing.")
    if issuer and not TENANT_ID.search(issuer):
        raise SettingsError(
            "The app setting CHAT_ENTRA_ISSUER must hold the id of one tenant, as "
            f"https://login.microsoftonline.com/<tenant id>/v2.0 does; it is {issuer!r}."
        )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return read_settings(os.environ)
