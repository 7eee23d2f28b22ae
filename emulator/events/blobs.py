"""Watches containers of Azurite and publishes BlobCreated events for what is committed in them."""

import asyncio
import contextlib
import logging
import re
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from azure.core.exceptions import AzureError, ResourceNotFoundError
from azure.storage.blob import BlobProperties
from azure.storage.blob.aio import BlobServiceClient, ContainerClient

from .envelopes import Event, blob_created

log = logging.getLogger(__name__)

LOCAL_ACCOUNT = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/local"
    "/providers/Microsoft.Storage/storageAccounts/devstoreaccount1"
)
FULL_SCAN_SECONDS = 5.0
LOG_POLL_SECONDS = 0.05
# An upload of many blobs writes many lines: let a few gather before listing.
DEBOUNCE_SECONDS = 0.05
# A line of Azurite's access log that may be a commit. Staging a block answers 201 too, but commits nothing.
_COMMIT = re.compile(r'"PUT /[^/ ]+/([^/ ?]+)/(?!\S*[?&]comp=block[& ])\S+ HTTP/\d\.\d" 20[12] ')

_TABLE = "CREATE TABLE IF NOT EXISTS blobs (container TEXT, name TEXT, etag TEXT, PRIMARY KEY (container, name))"


class BlobWatcher:
    """Compares what the containers list with what has been published, and publishes the difference.

    The listing is the truth, so no event depends on a log line; the lines only make it quick. What was published is
    kept in SQLite, so a restart neither forgets nor repeats; only a crash between publishing and saving repeats an
    event, with the same id. Two overwrites within one scan are one event. ``log_path``: Azurite's standard output.
    """

    def __init__(
        self,
        connect: str | Callable[[], BlobServiceClient],
        containers: Sequence[str],
        publish: Callable[[list[Event]], Awaitable[None]],
        state: Path,
        log_path: Path | None = None,
        topic: str = LOCAL_ACCOUNT,
        full_scan_seconds: float = FULL_SCAN_SECONDS,
    ) -> None:
        """``connect``: a connection string, or what makes a client; ``topic``: the account's id in the envelopes."""
        self._connect = connect
        self._containers = list(containers)
        self._publish = publish
        self._topic = topic
        self._log_path = log_path
        self._full_scan_seconds = full_scan_seconds
        self._db = sqlite3.connect(state, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(_TABLE)

    async def run(self) -> None:
        """Watch until cancelled. An unreachable Azurite is reported once, and watched for."""
        reachable = True
        lines = _LogTail(self._log_path)
        async with self._client() as service:
            changed = set(self._containers)
            while True:
                try:
                    for name in changed:
                        await self.scan(service.get_container_client(name))
                    if not reachable:
                        log.info("event=scan outcome=recovered")
                    reachable = True
                except AzureError as error:
                    if reachable:
                        log.warning("event=scan outcome=failed error=%s", type(error).__name__)
                    reachable = False
                except Exception:  # the edge of the task: the next scan publishes what this one could not
                    log.exception("event=scan outcome=broken")
                changed = await self._next_changes(lines)

    async def scan(self, container: ContainerClient) -> int:
        """Publish every blob of ``container`` that is new or has a new ETag; returns how many were.

        A container that does not exist yet holds nothing. Raises AzureError when the listing fails.
        """
        name = container.container_name
        known = dict(self._db.execute("SELECT name, etag FROM blobs WHERE container = ?", (name,)))
        listed: dict[str, str] = {}
        events: list[Event] = []
        with contextlib.suppress(ResourceNotFoundError):
            async for blob in container.list_blobs(include=["copy"]):
                listed[blob.name] = blob.etag
                if known.get(blob.name) != blob.etag:
                    events.append(await self._event(container, blob))
        if events:
            await self._publish(events)
            log.info("event=blobs container=%s published=%d", name, len(events))
        with self._db:
            self._db.execute("BEGIN")
            new = [(name, blob, etag) for blob, etag in listed.items() if known.get(blob) != etag]
            self._db.executemany("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", new)
            gone = [(name, blob) for blob in known.keys() - listed.keys()]
            self._db.executemany("DELETE FROM blobs WHERE container = ? AND name = ?", gone)
        return len(events)

    def _client(self) -> BlobServiceClient:
        if isinstance(self._connect, str):
            return BlobServiceClient.from_connection_string(self._connect, retry_total=0)
        return self._connect()

    async def _event(self, container: ContainerClient, blob: BlobProperties) -> Event:
        client = container.get_blob_client(blob.name)
        api = "PutBlob"
        if blob.copy.id:
            api = "CopyBlob"
        elif blob.blob_type == "BlockBlob":
            # Only a blob made of a block list has committed blocks. Gone by now? Then its event is late, not wrong.
            with contextlib.suppress(ResourceNotFoundError):
                committed, _ = await client.get_block_list("committed")
                api = "PutBlockList" if committed else "PutBlob"
        return blob_created(
            self._topic,
            container.container_name,
            blob.name,
            api=api,
            etag=blob.etag,
            content_type=blob.content_settings.content_type or "application/octet-stream",
            content_length=blob.size,
            blob_type=str(getattr(blob.blob_type, "value", blob.blob_type)),
            url=client.url.partition("?")[0],
            event_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{client.url.partition('?')[0]} {blob.etag}")),
        )

    async def _next_changes(self, lines: "_LogTail") -> set[str]:
        """Wait for commits in the log or for the next full scan; the containers to look at."""
        full_scan_at = time.monotonic() + self._full_scan_seconds
        while time.monotonic() < full_scan_at:
            await asyncio.sleep(LOG_POLL_SECONDS)
            if changed := lines.committed() & set(self._containers):
                await asyncio.sleep(DEBOUNCE_SECONDS)
                return changed | (lines.committed() & set(self._containers))
        return set(self._containers)


class _LogTail:
    """The lines added to a file since the last look; the file may be missing, and may start over."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._position = self._size()
        self._rest = b""

    def committed(self) -> set[str]:
        """The containers in which the new lines show a commit."""
        size = self._size()
        if self._path is None or size == self._position:
            return set()
        if size < self._position:
            self._position, self._rest = 0, b""
        with self._path.open("rb") as file:
            file.seek(self._position)
            text = self._rest + file.read()
            self._position = file.tell()
        complete, _, self._rest = text.rpartition(b"\n")
        return set(_COMMIT.findall(complete.decode(errors="replace")))

    def _size(self) -> int:
        try:
            return self._path.stat().st_size if self._path else 0
        except FileNotFoundError:
            return 0
