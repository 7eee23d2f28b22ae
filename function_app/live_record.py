"""The live record of one model, for those who move runs; live.py reads all of them for the chat."""

from contextlib import suppress
from typing import Any

import msgspec
from azure.core import MatchConditions
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


def etag(model: str) -> str:
    """The record's ETag; "" when there is no record."""
    try:
        return str(blob(model).get_blob_properties().etag)
    except ResourceNotFoundError:
        return ""


def write(model: str, content: bytes, etag: str) -> None:
    """Replace the record that had ``etag``. Raises what Azure raises for one that has changed since."""
    if etag:
        blob(model).upload_blob(content, overwrite=True, etag=etag, match_condition=MatchConditions.IfNotModified)
    else:
        blob(model).upload_blob(content, overwrite=False)


def delete(model: str, etag: str) -> None:
    """Nothing serves under the model's name any more. Raises what Azure raises for a record that has changed since."""
    with suppress(ResourceNotFoundError):
        blob(model).delete_blob(etag=etag, match_condition=MatchConditions.IfNotModified)
