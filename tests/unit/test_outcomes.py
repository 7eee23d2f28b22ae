"""Which ends are told of, and what a topic that does not answer costs. tests/emulator has the one that does."""

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from azure.core.credentials import AccessToken

from function_app import outcomes
from function_app.runs import DatasetVersion, Run, Stage, new_run

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
        monkeypatch.setattr(outcomes, "_silent_until", 0.0)
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
    started = time.monotonic()
    assert not any(outcomes.publish(run) for _ in range(100))  # other runs that end now do not wait for it again
    assert time.monotonic() - started < 0.2
    monkeypatch.setattr(outcomes, "utc_now", lambda: START + timedelta(hours=24))
    assert outcomes.publish(run)
    told = [record for record in caplog.records if record.name == "function_app.outcomes"]
    assert [record.levelname for record in told] == ["WARNING"] * 101 + ["ERROR"]
    assert "OUTCOME_TOPIC_ENDPOINT" in told[-1].message
