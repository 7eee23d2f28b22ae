"""The live record of one model, for those who move runs; live.py reads all of them for the chat."""

from contextlib import suppress
from typing import Any

import msgspec
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobClient

from . import azure_clients
from .errors import StepError
from .live import PREFIX
from .settings import settings


def blob(model: str) -> BlobClient:
    """Where the record of the model is (docs/interfaces.md)."""
    return azure_clients.container(settings().runs_container).get_blob_client(f"{PREFIX}{model}.json")


def read(model: str) -> dict[str, Any] | None:
    """The record; None when nothing serves under the model's name. Raises StepError when it cannot be read."""
    try:
        return msgspec.json.decode(blob(model).download_blob().readall(), type=dict[str, Any])
    except ResourceNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise StepError(f"the record {PREFIX}{model}.json in the runs container cannot be read: {error}") from None


def delete(model: str) -> None:
    """Nothing serves under the model's name any more."""
    with suppress(ResourceNotFoundError):
        blob(model).delete_blob()
