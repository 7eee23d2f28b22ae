"""Retiring idle models, with records, marks and metadata in a real Azurite."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobServiceClient, ContainerClient
from host_processes import Azurite

from function_app import advance, azure_clients, idle, live_record, runs, settle, usage
from function_app.runs import Ask, BlobRunStore, DatasetVersion, Run, Stage, new_run

pytest_plugins = ("host_fixtures",)

NOW = datetime.now(UTC)  # the marks have storage's time


@pytest.fixture
def container(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Iterator[ContainerClient]:
    """The runs container; what is woken is noted in its stead."""
    made = BlobServiceClient.from_connection_string(azurite.connection_string).create_container(f"runs-{uuid4()}")
    monkeypatch.setattr(azure_clients, "container", lambda _: made)
    for module in (usage, live_record):
        monkeypatch.setattr(module, "settings", lambda: SimpleNamespace(runs_container="runs"))
    monkeypatch.setattr(advance, "store", lambda: BlobRunStore(made))
    yield made
    made.delete_container()


def serve(container: ContainerClient, model: str, hours: float = 24, since: datetime = NOW - timedelta(days=9)) -> Run:
    """A live run and its live record."""
    run = new_run(model, DatasetVersion(f"{model}/a.jsonl", "0x1", 1, since), since)
    run.recipe = {"release": {"idle_hours": hours}}
    run.move(Stage.LIVE, "all traffic goes to it", since)
    BlobRunStore(container).create(run)
    live_record.write({"model": model, "run_id": run.id, "since": since, "idle_hours": hours, "endpoint": "e"}, "")
    return run


def swept(container: ContainerClient, now: datetime = NOW, releasing: frozenset[str] = frozenset()) -> list[str]:
    """The runs that one look has asked to retire and woken."""
    woken: list[str] = []
    idle.retire_idle(BlobRunStore(container), woken.append, now, releasing)
    for id in woken:
        assert stored(container, id).asked == Ask("retire", idle.BY, now, "no chat for 24 hours")
    return woken


def stored(container: ContainerClient, id: str) -> Run:
    found = BlobRunStore(container).get(id)
    assert found is not None
    return found[0]


def test_only_a_model_without_a_chat_for_its_hours_is_retired(container: ContainerClient) -> None:
    forgotten = serve(container, "forgotten")
    busy = serve(container, "busy")
    usage._mark("busy")
    serve(container, "forever", hours=0)
    serve(container, "releasing")
    young = serve(container, "young", since=NOW - timedelta(hours=24))
    usage._mark("young-but-another")
    assert swept(container, releasing=frozenset({"releasing"})) == [forgotten.id]
    assert swept(container, releasing=frozenset({"releasing"})) == []  # it was asked already
    later = NOW + timedelta(minutes=6)
    assert swept(container, later, frozenset({"releasing"})) == [young.id]  # a mark may be five minutes late
    # The mark is as old as this test, which may run long after NOW.
    assert swept(container, NOW + timedelta(hours=36), frozenset({"releasing"})) == [busy.id]


def test_the_run_is_retired_unless_a_chat_comes_first(
    container: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "clean_up", lambda *_: True)
    monkeypatch.setattr(settle.outcomes, "wanted", lambda: False)
    left, used = serve(container, "left"), serve(container, "used")
    assert swept(container) == [left.id, used.id]
    usage._mark("used")
    for run in (left, used):
        advance.advance(run.id)
    assert stored(container, left.id).history[-1].reason == "retired by the idle watch: no chat for 24 hours"
    assert stored(container, left.id).stage == Stage.RETIRED
    assert (stored(container, used.id).stage, stored(container, used.id).asked) == (Stage.LIVE, None)
    # What a person asks for is done, however busy the model is.
    run, etag = BlobRunStore(container).get(used.id) or pytest.fail("its record is gone")
    run.asked = Ask("retire", "alice", NOW)
    BlobRunStore(container).save(run, etag)
    advance.advance(used.id)
    assert stored(container, used.id).stage == Stage.RETIRED


def test_a_chat_between_the_listing_and_the_decision_wins(
    container: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(container, "support")
    listing = usage.last_used

    def then_a_chat() -> dict[str, datetime]:
        before = listing()
        usage._mark("support")
        return before

    monkeypatch.setattr(usage, "last_used", then_a_chat)
    assert swept(container) == []


def test_a_record_that_somebody_has_edited_does_not_stop_the_others(
    container: ContainerClient, caplog: pytest.LogCaptureFixture
) -> None:
    container.upload_blob("live/a-broken.json", b"{")
    container.upload_blob("live/b-nonsense.json", b"{}", metadata={"run_id": "x", "since": "long ago"})
    serve(container, "c-lost")
    container.delete_blob(f"{live_record.read('c-lost')['run_id']}.json")  # type: ignore[index]
    edited = serve(container, "edited")
    container.upload_blob("live/edited.json", live_record.blob("edited").download_blob().readall(), overwrite=True)
    assert swept(container) == [edited.id]
    assert [record.levelname for record in caplog.records if "live" in record.message] == ["ERROR"] * 3


def test_a_look_costs_two_listings_whatever_the_number_of_models(
    container: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        serve(container, f"model-{number}", hours=24 if number else 1000)
        usage._mark(f"model-{number}")
    asked: list[str] = []
    send = RequestsTransport.send

    def counted(transport: RequestsTransport, request: Any, **options: Any) -> Any:
        asked.append(f"{request.method} {request.url}")
        return send(transport, request, **options)

    monkeypatch.setattr(RequestsTransport, "send", counted)
    assert swept(container) == []
    assert len(asked) == 2
    assert runs.PAGE >= 500  # of so many names each
