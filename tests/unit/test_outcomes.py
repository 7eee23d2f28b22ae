"""Which ends are told of, and what a topic that does not answer costs. tests/emulator has the one that does."""

import copy
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from azure.core.credentials import AccessToken

from function_app import advance, intake, outcomes, settle
from function_app.errors import UserError
from function_app.runs import Ask, DatasetVersion, Run, Stage, Summary, new_run

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


class Credential:
    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        assert scopes == ("https://eventgrid.azure.net/.default",)
        return AccessToken("token", int(time.time()) + 3600)


@pytest.fixture
def dead_topic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A topic that takes connections and says nothing, not even hello."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"https://127.0.0.1:{server.getsockname()[1]}/api/events"
        monkeypatch.setattr(outcomes, "settings", lambda: SimpleNamespace(outcome_topic_endpoint=endpoint))
        monkeypatch.setattr(outcomes.azure_clients, "credential", Credential)
        monkeypatch.setattr(outcomes, "CONNECT_SECONDS", 0.3)
        monkeypatch.setattr(outcomes, "READ_SECONDS", 0.3)
        monkeypatch.setattr(outcomes, "SLOW_SECONDS", 0.2)
        monkeypatch.setattr(outcomes, "_silent_since", None)
        outcomes._client.cache_clear()
        yield
    outcomes._client.cache_clear()


def ended(stage: Stage) -> Run:
    run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 1, START), START)
    run.move(stage, "so it ended", START)
    return run


def test_which_ends_are_told_of() -> None:
    told = {stage: outcomes.kind(ended(stage)) for stage in (Stage.LIVE, Stage.REJECTED, Stage.FAILED)}
    assert told == {Stage.LIVE: "RunLive", Stage.REJECTED: "RunRejected", Stage.FAILED: "RunFailed"}
    for stage in (Stage.CANCELLED, Stage.SUPERSEDED, Stage.RETIRED, Stage.SHIFTING):
        assert outcomes.kind(ended(stage)) == ""
    back = ended(Stage.LIVE)
    back.release_of = "support-0123456789ab"
    assert outcomes.kind(back) == "RolledBack"


def test_a_topic_that_does_not_answer_is_left_soon_and_given_up_after_a_day(
    dead_topic: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = ended(Stage.FAILED)
    run.outbox = ["RunFailed"]
    monkeypatch.setattr(outcomes, "utc_now", lambda: START + timedelta(hours=23))
    started = time.monotonic()
    assert not outcomes.publish(run)
    assert 0.2 < time.monotonic() - started < 5
    with monkeypatch.context() as left_alone:  # other runs that end now do not wait for it again
        left_alone.setattr(outcomes, "_client", lambda: pytest.fail("the topic is asked again"))
        assert not any(outcomes.publish(run) for _ in range(100))
    monkeypatch.setattr(outcomes, "utc_now", lambda: START + timedelta(hours=24))
    assert outcomes.publish(run)
    told = [record for record in caplog.records if record.name == "function_app.outcomes"]
    assert [record.levelname for record in told] == ["WARNING"] * 101 + ["ERROR"]
    assert "OUTCOME_TOPIC_ENDPOINT" in told[-1].message


class Store:
    """One run in memory."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def get(self, id: str) -> tuple[Run, str]:
        return copy.deepcopy(self.run), "etag"

    def save(self, run: Run, etag: str) -> str:
        self.run = copy.deepcopy(run)
        return etag

    def summaries(self, prefix: str = "") -> list[Summary]:
        return []


def test_a_topic_that_takes_nothing_does_not_keep_a_person_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: object) -> None:
        raise UserError("still not JSON")

    monkeypatch.setattr(outcomes, "publish", lambda _: False)
    monkeypatch.setattr(outcomes, "wanted", lambda: True)
    monkeypatch.setattr(intake, "take_in", reject)
    run = ended(Stage.FAILED)
    run.outbox, run.asked = ["RunFailed"], Ask("retry", "alice", START)
    store = Store(run)
    messages: list[object] = []
    monkeypatch.setattr(advance, "store", lambda: store)
    monkeypatch.setattr(advance, "wake", lambda id, dataset=None, at=None: messages.append(at))
    advance.advance(run.id)
    assert [event.reason for event in store.run.history][-2:] == ["taken up again by alice", "still not JSON"]
    assert (store.run.outbox, len(messages)) == (["RunRejected"], 1)  # and the new outcome is tried again later


def test_the_looks_for_a_topic_become_rarer_however_long_the_old_model_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "publish", lambda _: False)
    run = ended(Stage.LIVE)
    run.outbox = ["RunLive"]
    run.cleanup, run.cleanup_at = "replaced", START + timedelta(days=6)
    wait = settle.settle(Store(run), run, START + timedelta(hours=10))
    assert wait is not None
    assert wait.delay == settle.LATEST_LOOK
