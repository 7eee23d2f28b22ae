"""The clients to Azure, one of each; nothing else in the app builds a client."""

from functools import lru_cache
from typing import TYPE_CHECKING

from .settings import settings

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import IdentityConfiguration
    from azure.identity import DefaultAzureCredential
    from azure.storage.blob import BlobServiceClient, ContainerClient
    from azure.storage.blob.aio import ContainerClient as AsyncContainerClient
    from azure.storage.queue import QueueClient


CONNECTIONS = 128  # kept open to the storage account


@lru_cache(maxsize=1)
def credential() -> "DefaultAzureCredential":
    """The app's managed identity (in a shell: whoever is signed in)."""
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()


@lru_cache(maxsize=1)
def _blob_service() -> "BlobServiceClient":
    """The app's storage account. The usual pool keeps ten connections; two dozen invocations that read in ranges would
    open new ones all the time, and a TLS handshake costs more than a small file."""
    import requests
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import BlobServiceClient
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.mount("https://", HTTPAdapter(pool_maxsize=CONNECTIONS))
    transport = RequestsTransport(
        session=session, connection_timeout=20, read_timeout=60, connection_data_block_size=256 * 1024
    )
    return BlobServiceClient(settings().blob_service_uri, credential=credential(), transport=transport)


@lru_cache(maxsize=1)
def _workspace_blob_service() -> "BlobServiceClient":
    from azure.storage.blob import BlobServiceClient

    return BlobServiceClient(settings().workspace_blob_service_uri, credential=credential())


@lru_cache(maxsize=8)
def container(name: str) -> "ContainerClient":
    """A container of the app's storage account."""
    return _blob_service().get_container_client(name)


@lru_cache(maxsize=8)
def datastore_container(datastore: str) -> "ContainerClient":
    """The container behind one of the workspace's datastores: job logs, outputs, build contexts."""
    name = str(ml_client().datastores.get(datastore).container_name)
    return _workspace_blob_service().get_container_client(name)


def live_container() -> "AsyncContainerClient":
    """A new client of the runs container for the running event loop; live.py keeps one for each loop."""
    from azure.identity.aio import DefaultAzureCredential as AsyncDefaultAzureCredential
    from azure.storage.blob.aio import BlobServiceClient as AsyncBlobServiceClient

    service = AsyncBlobServiceClient(settings().blob_service_uri, credential=AsyncDefaultAzureCredential())
    return service.get_container_client(settings().runs_container)


@lru_cache(maxsize=1)
def runs_queue() -> "QueueClient":
    """The queue that wakes ``advance_run``; base64 because the Functions host decodes it so."""
    from azure.storage.queue import QueueClient, TextBase64EncodePolicy

    return QueueClient(
        settings().queue_service_uri,
        settings().runs_queue,
        credential=credential(),
        message_encode_policy=TextBase64EncodePolicy(),
    )


@lru_cache(maxsize=1)
def ml_client() -> "MLClient":
    """Azure Machine Learning. Imported here, because azure.ai.ml takes most of a second."""
    from azure.ai.ml import MLClient

    return MLClient(
        credential(),
        subscription_id=settings().subscription_id,
        resource_group_name=settings().resource_group,
        workspace_name=settings().workspace,
    )


@lru_cache(maxsize=8)
def registry_client(name: str) -> "MLClient":
    """A registry of models and components, such as ``azureml``. Its constructor already asks the registry."""
    from azure.ai.ml import MLClient

    return MLClient(credential(), registry_name=name)


def user_assigned(resource_id: str) -> "IdentityConfiguration | None":
    """The identity for a cluster or an endpoint; None, the system's own, for an empty id."""
    from azure.ai.ml.entities import IdentityConfiguration, ManagedIdentityConfiguration

    if not resource_id:
        return None
    identities = [ManagedIdentityConfiguration(resource_id=resource_id)]
    return IdentityConfiguration(type="user_assigned", user_assigned_identities=identities)


def plain(value: object) -> str:
    """A status or state of azure-ai-ml as Azure writes it. The SDK's enumeration members are texts, but their str()
    is ``JobStatus.RUNNING``."""
    return str(getattr(value, "value", value))
