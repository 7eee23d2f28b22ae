"""When each model last answered a chat: the blobs ``used/<model>``, whose last-modified time is all that they say."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from azure.core.exceptions import ResourceNotFoundError

from . import azure_clients
from .runs import PAGE
from .settings import settings

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

log = logging.getLogger("function_app.usage")

PREFIX = "used/"
INTERVAL = timedelta(minutes=5)  # a process marks a model no more often, so a mark may be older than the last chat
AGAIN = timedelta(seconds=30)  # after a mark that could not be written
CONNECT_SECONDS, READ_SECONDS = 5, 10  # the marks of the other models wait behind this one

_marked: dict[str, float] = {}  # by model, when this process last marked it, on the monotonic clock
# A thread of its own, and only one: storage that hangs keeps back marks, and neither chats nor what else has threads.
_writer = ThreadPoolExecutor(1, thread_name_prefix="usage")


def note(model: str) -> None:
    """Mark the model as used now. Returns at once and never fails: it is called in the middle of a chat."""
    now = time.monotonic()
    if now - _marked.get(model, float("-inf")) < INTERVAL.total_seconds():
        return
    _marked[model] = now
    with suppress(RuntimeError):  # the process is about to end, and takes no more work
        _writer.submit(_mark, model)


def last_used() -> dict[str, datetime]:
    """When each model was last marked, by one listing."""
    blobs = azure_clients.container(settings().runs_container).list_blobs(PREFIX, results_per_page=PAGE)
    return {blob.name.removeprefix(PREFIX): blob.last_modified for blob in blobs}


def when_used(model: str) -> datetime | None:
    """When the model last answered a chat, to within INTERVAL, as storage has it now; None when it never has."""
    try:
        properties = _blob(model).get_blob_properties()
    except ResourceNotFoundError:
        return None
    return properties.last_modified


def _mark(model: str) -> None:
    try:
        # No retry: the next chat is one.
        _blob(model).upload_blob(
            b"", overwrite=True, connection_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retry_total=0
        )
    except Exception as error:  # the edge of the thread
        log.warning("usage model=%s error=%s", model, type(error).__name__)
        _marked[model] = time.monotonic() - (INTERVAL - AGAIN).total_seconds()


def _blob(model: str) -> "BlobClient":
    return azure_clients.container(settings().runs_container).get_blob_client(f"{PREFIX}{model}")
