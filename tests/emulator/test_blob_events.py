"""The blob watcher against a real Azurite."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from azure.storage.blob import BlobBlock
from azure.storage.blob.aio import BlobServiceClient, ContainerClient
from host_processes import Azurite

from emulator.events.blobs import BlobWatcher
from emulator.events.eventgrid import Event

pytest_plugins = ("host_fixtures",)


class Watched:
    """A container of its own for each test, the events seen in it, and watchers that share one state file."""

    def __init__(self, azurite: Azurite, container: ContainerClient, state: Path) -> None:
        self.azurite = azurite
        self.container = container
        self.state = state
        self.events: list[Event] = []

    @asynccontextmanager
    async def watching(self, **options: Any) -> AsyncIterator[BlobWatcher]:
        """A running watcher; without options it relies on the access log, for the next scan is an hour away."""
        options = {"log_path": self.azurite.log_path, "full_scan_seconds": 3600, **options}
        watcher = BlobWatcher(
            self.azurite.connection_string, [self.container.container_name], self.publish, self.state, **options
        )
        task = asyncio.create_task(watcher.run())
        yield watcher
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def publish(self, events: list[Event]) -> None:
        self.events += events

    async def until(self, condition: Callable[[list[str]], bool], what: str) -> None:
        """Wait for ``condition`` on the names of the blobs that events told of, in order."""
        for _ in range(2000):
            if condition(self.names):
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"waited in vain for {what}; saw {self.names}")

    @property
    def names(self) -> list[str]:
        return [event["subject"].partition("/blobs/")[2] for event in self.events]


@pytest.fixture
async def watched(azurite: Azurite, tmp_path: Path) -> AsyncIterator[Watched]:
    async with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        yield Watched(azurite, service.get_container_client(f"c{uuid4().hex}"), tmp_path / "blobs.db")


async def test_an_upload_becomes_an_event_through_the_access_log(watched: Watched) -> None:
    await watched.container.create_container()
    async with watched.watching():
        blob = watched.container.get_blob_client("m/größe 1.jsonl")
        await blob.upload_blob(b"hello")
        await watched.until(lambda names: names == ["m/größe 1.jsonl"], "the event")
        properties = await blob.get_blob_properties()
    (event,) = watched.events
    data = event["data"]
    assert event["eventType"] == "Microsoft.Storage.BlobCreated"
    assert (data["api"], data["contentLength"], data["blobType"]) == ("PutBlob", 5, "BlockBlob")
    assert data["eTag"] == properties.etag.strip('"')
    assert data["url"] == blob.url


async def test_staged_blocks_are_no_event_until_they_are_committed(watched: Watched) -> None:
    await watched.container.create_container()
    async with watched.watching(full_scan_seconds=0.1):
        blob = watched.container.get_blob_client("big")
        await blob.stage_block("AAAA", b"x" * 10)
        await watched.container.upload_blob("marker", b"")
        await watched.until(lambda names: "marker" in names, "the marker")
        assert "big" not in watched.names
        await blob.commit_block_list([BlobBlock("AAAA")])
        await watched.until(lambda names: "big" in names, "the commit")
    assert watched.events[-1]["data"]["api"] == "PutBlockList"


async def test_an_overwrite_is_a_new_event_and_a_rewatch_of_a_deleted_name_too(watched: Watched) -> None:
    await watched.container.create_container()
    async with watched.watching(full_scan_seconds=0.1):
        blob = watched.container.get_blob_client("x")
        for count, content in enumerate([b"one", b"three"], start=1):
            await blob.upload_blob(content, overwrite=True)
            await watched.until(lambda names, count=count: len(names) == count, "the event")  # type: ignore[misc]
        await blob.delete_blob()
        await watched.container.upload_blob("other", b"")
        await watched.until(lambda names: "other" in names, "the marker")
        await blob.upload_blob(b"back")
        await watched.until(lambda names: len(names) == 4, "the event")
    assert watched.names == ["x", "x", "other", "x"]
    assert [event["data"]["contentLength"] for event in watched.events] == [3, 5, 0, 4]
    ordered = [event["data"]["sequencer"] for event in watched.events]
    assert ordered == sorted(ordered)
    assert len({event["id"] for event in watched.events}) == 4


async def test_a_restart_neither_forgets_nor_repeats(watched: Watched) -> None:
    await watched.container.create_container()
    async with watched.watching():
        await watched.container.upload_blob("before", b"1")
        await watched.until(lambda names: names == ["before"], "the event")
    await watched.container.upload_blob("between", b"2")
    async with watched.watching():
        await watched.until(lambda names: names == ["before", "between"], "the event missed")
        await watched.container.upload_blob("after", b"3")
        await watched.until(lambda names: "after" in names, "the event")
    assert watched.names == ["before", "between", "after"]


async def test_an_event_that_could_not_be_published_is_not_forgotten(watched: Watched) -> None:
    await watched.container.create_container()
    await watched.container.upload_blob("x", b"1")
    watcher = BlobWatcher(watched.azurite.connection_string, [], _fail, watched.state)
    with pytest.raises(OSError, match="no publisher"):
        await watcher.scan(watched.container)
    watcher = BlobWatcher(watched.azurite.connection_string, [], watched.publish, watched.state)
    assert await watcher.scan(watched.container) == 1
    assert await watcher.scan(watched.container) == 0


async def _fail(events: list[Event]) -> None:
    raise OSError("no publisher")


async def test_the_full_scan_finds_what_the_log_does_not_tell(watched: Watched) -> None:
    # Neither log nor container exist yet.
    async with watched.watching(log_path=None, full_scan_seconds=0.1):
        await watched.container.create_container()
        await watched.container.upload_blob("x", b"1")
        await watched.until(lambda names: names == ["x"], "the event")


async def test_many_uploads_are_one_event_each(watched: Watched) -> None:
    await watched.container.create_container()
    async with watched.watching():
        await asyncio.gather(*(watched.container.upload_blob(f"b{number}", b"x") for number in range(100)))
        await watched.until(lambda names: len(names) >= 100, "the events")
    assert sorted(watched.names) == sorted(f"b{number}" for number in range(100))
