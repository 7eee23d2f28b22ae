"""Poison messages: kept once for each run, listed, and sent again; their run is marked, and given up in the end."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import azure.functions as func
import pytest
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

from function_app import advance, azure_clients, outcomes, poison
from function_app.runs import BlobRunStore, DatasetVersion, Run, Stage, new_run
from function_app.settings import read_settings

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
ENVIRONMENT = {
    "Storage__blobServiceUri": "https://account.blob.core.windows.net",
    "Storage__queueServiceUri": "https://account.queue.core.windows.net",
    "AZURE_SUBSCRIPTION_ID": "s",
    "AZURE_RESOURCE_GROUP": "g",
    "AZURE_ML_WORKSPACE": "w",
}


class Blobs:
    """As much of a container client as the run store and poison.py use."""

    def __init__(self) -> None:
        self.content: dict[str, tuple[bytes, int, dict[str, str]]] = {}

    def get_blob_client(self, name: str) -> Any:
        return SimpleNamespace(upload_blob=lambda data, **given: self.upload_blob(name, data, **given))

    def upload_blob(
        self,
        name: str,
        data: bytes,
        overwrite: bool,
        metadata: dict[str, str] | None = None,
        etag: str = "",
        **_: object,
    ) -> dict[str, str]:
        version = self.content[name][1] if name in self.content else 0
        if version and not overwrite:
            raise ResourceExistsError
        if etag and str(version) != etag:
            raise ResourceModifiedError
        self.content[name] = (bytes(data), version + 1, metadata or {})
        return {"etag": str(version + 1)}

    def download_blob(self, name: str) -> Any:
        if name not in self.content:
            raise ResourceNotFoundError
        data, version, _ = self.content[name]
        return SimpleNamespace(readall=lambda: data, properties=SimpleNamespace(etag=str(version)))

    def list_blobs(self, name_starts_with: str) -> Iterator[Any]:
        return iter([SimpleNamespace(name=name) for name in sorted(self.content) if name.startswith(name_starts_with)])

    def delete_blob(self, name: str) -> None:
        if self.content.pop(name, None) is None:
            raise ResourceNotFoundError


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blobs, self.now = Blobs(), START
        self.sent: list[str] = []
        self.runs = BlobRunStore(self.blobs)  # type: ignore[arg-type]
        monkeypatch.setattr(azure_clients, "container", lambda _: self.blobs)
        monkeypatch.setattr(azure_clients, "runs_queue", lambda: self)
        for module in (poison, advance):
            monkeypatch.setattr(module, "settings", lambda: read_settings(ENVIRONMENT))
            monkeypatch.setattr(module, "utc_now", lambda: self.now)
        monkeypatch.setattr(outcomes, "wanted", lambda: False)

    def send_message(self, content: str, **_: object) -> None:
        self.sent.append(content)

    def a_run(self) -> Run:
        run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 5, START), START)
        self.runs.create(run)
        return run

    def stored(self, run: Run) -> Run:
        found = self.runs.get(run.id)
        assert found
        return found[0]

    def names(self) -> list[str]:
        return [name for name in self.blobs.content if name.startswith("poison/")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def bury(body: bytes) -> None:
    advance.bury_run.build().get_user_function()(func.QueueMessage(body=body))


def message_of(run: Run) -> bytes:
    return json.dumps({"run_id": run.id}).encode()


def test_a_poisoned_run_keeps_its_message_once_however_often_it_comes(world: World) -> None:
    run = world.a_run()
    for chance in (1, 2, 3):
        bury(message_of(run))
        world.now += timedelta(minutes=20)
        assert world.stored(run).revivals == chance
        assert not world.stored(run).ended
    bury(message_of(run))
    assert world.stored(run).stage == Stage.FAILED
    assert world.stored(run).history[-1].reason == poison.GAVE_UP
    assert world.names() == [f"poison/20261121T100000Z-{run.id}.json"]
    assert world.stored(run).links["poison"] == f"20261121T100000Z-{run.id}"
    # Each revival sent the message of the next look; the end did for what is left to delete.
    assert len(world.sent) == 4


def test_a_run_that_has_ended_is_marked_and_left_to_the_sweep(world: World) -> None:
    run = world.a_run()
    run.move(Stage.CANCELLED, "by alice", START)
    run.cleanup, run.wake_at = "job", START
    world.runs.save(run, "1")
    for _ in range(9):
        bury(message_of(run))
    assert world.stored(run).stage == Stage.CANCELLED
    assert world.stored(run).links["poison"]
    assert world.stored(run).wake_at is None
    assert world.sent == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'{"run_id": 5}', b"\xff\xfe"])
def test_a_message_that_nobody_of_ours_has_sent_is_kept_whichever_queue_it_came_by(world: World, body: bytes) -> None:
    advance.advance_run.build().get_user_function()(func.QueueMessage(body=body))
    bury(body)
    (kept,) = poison.kept()
    assert kept["run_id"] == ""
    assert kept["message"] == body.decode("utf-8", "replace")
    assert kept["name"].startswith("20261121T100000Z-unreadable-")


@pytest.mark.parametrize("id", ["nobody", "../../live/support", "a" * 500, "é"])
def test_a_message_of_a_run_without_a_record_is_kept_under_a_harmless_name(world: World, id: str) -> None:
    bury(json.dumps({"run_id": id}).encode())
    (kept,) = poison.kept()
    assert kept["run_id"] == id
    assert poison.NAME.fullmatch(kept["name"])
    assert poison.replay(kept["name"])


def test_a_record_that_cannot_be_read_keeps_the_message_and_does_not_poison_its_own_queue(world: World) -> None:
    run = world.a_run()
    world.blobs.upload_blob(f"{run.id}.json", b"{half", overwrite=True)
    bury(message_of(run))
    assert [kept["run_id"] for kept in poison.kept()] == [run.id]


def test_a_replayed_message_is_sent_once_and_gives_its_run_its_chances_back(world: World) -> None:
    run = world.a_run()
    bury(message_of(run))
    world.sent.clear()
    name = world.stored(run).links["poison"]
    assert poison.replay(name, "alice")
    assert world.sent == [message_of(run).decode()]
    assert world.stored(run).revivals == 0
    assert "poison" not in world.stored(run).links
    assert world.stored(run).asked is None
    assert poison.kept() == []
    assert not poison.replay(name)
    assert not poison.replay("../support")
    assert len(world.sent) == 1


def test_replaying_the_message_of_a_run_that_was_given_up_asks_for_it_to_go_on(world: World) -> None:
    run = world.a_run()
    for _ in range(4):
        bury(message_of(run))
    assert poison.replay(world.stored(run).links["poison"], "alice")
    asked = world.stored(run).asked
    assert asked
    assert (asked.action, asked.by) == ("retry", "alice")
    assert world.stored(run).stage == Stage.FAILED  # the state machine answers


def test_replaying_leaves_a_run_that_failed_for_another_reason_as_it_is(world: World) -> None:
    run = world.a_run()
    bury(message_of(run))
    stored = world.stored(run)
    stored.move(Stage.FAILED, "the training job failed", START)
    world.runs.save(stored, "2")
    assert poison.replay(stored.links["poison"])
    assert world.stored(run).asked is None


def test_the_newest_are_listed_first(world: World) -> None:
    for number in range(3):
        bury(f"not ours {number}".encode())
        world.now += timedelta(hours=1)
    assert [kept["message"] for kept in poison.kept()] == ["not ours 2", "not ours 1", "not ours 0"]


def test_a_kept_message_that_somebody_has_changed_does_not_hide_the_others(world: World) -> None:
    bury(b"not ours")
    world.blobs.upload_blob("poison/20261121T090000Z-support-000000000001.json", b"{half", overwrite=True)
    assert [kept["message"] for kept in poison.kept()] == ["not ours"]
    assert not poison.replay("20261121T090000Z-support-000000000001")
