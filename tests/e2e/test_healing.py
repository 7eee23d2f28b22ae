"""A run of which nobody is told: no event comes, no message that was sent ahead; the sweep alone brings it to its end.

The app runs in this process, against a local Azure without a Functions host; nobody waits, its clock is put forward.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.ai.ml import MLClient

from function_app import advance, azure_clients, poison, settle, steps
from function_app.runs import Run, Stage, run_id
from tests import instant
from tests.local_azure import LocalAzure, forget_clients, local_azure

SWEEP_EVERY = timedelta(minutes=5)
LONGEST = timedelta(days=1)
RECIPE = b"release: {bake_minutes: 1}\n"


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    project = instant.project(tmp_path_factory.mktemp("project"))
    with local_azure(tmp_path_factory.mktemp("local-azure"), project=project) as running:
        forget_clients()
        yield running
        forget_clients()


class Timer:
    past_due = False


class App:
    """The app with its clock and its queue in hand. Only what the sweep sends arrives: all other messages are lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = timedelta(0)
        self.sweeps = 0
        self._sweeping = False
        self._messages: list[tuple[str, dict[str, str] | None]] = []
        monkeypatch.setattr(advance, "wake", self._wake)
        for module in (advance, steps, settle, poison):
            monkeypatch.setattr(module, "utc_now", self.now)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def _wake(self, id: str, dataset: dict[str, str] | None = None, at: datetime | None = None) -> None:
        if self._sweeping:
            self._messages.append((id, dataset))

    def run_to_its_end(self, id: str) -> Run:
        """Sweep, deliver what that has sent, and put the clock forward to the next time."""
        started = self.now()
        while True:
            found = advance.store().get(id)
            if found and found[0].ended and not found[0].unsettled:
                return found[0]
            assert self.now() - started < LONGEST, found[0] if found else "there is no record"
            self._sweeping = True
            advance.sweep.build().get_user_function()(Timer())
            self._sweeping = False
            self.sweeps += 1
            messages, self._messages = self._messages, []
            for run, dataset in messages:
                advance.advance(run, dataset)
            time.sleep(0.05)  # what takes its time is the local Azure, whose clock is the real one
            self.ahead += SWEEP_EVERY


def test_a_run_is_healed_by_the_sweep_alone(azure: LocalAzure, monkeypatch: pytest.MonkeyPatch) -> None:
    app, model = App(monkeypatch), "forgotten"
    azure.drop(f"{model}/recipe.yaml", RECIPE)
    first = app.run_to_its_end(run_id(model, *_dropped(azure, model, "first")))
    assert first.stage == Stage.LIVE, first.history[-1].reason
    # The second replaces the first, share by share, and deletes its deployment after the bake time.
    second = app.run_to_its_end(run_id(model, *_dropped(azure, model, "second")))
    assert second.stage == Stage.LIVE, second.history[-1].reason
    assert [event.reason for event in second.history if "% of the traffic" in event.reason] == [
        f"{share} % of the traffic" for share in (10, 50, 100)
    ]
    assert app.sweeps > 10
    ml: MLClient = azure_clients.ml_client()
    # One job and one deployment each.
    assert sorted(job.name for job in ml.jobs.list() if model in str(job.name)) == sorted([first.id, second.id])
    (endpoint,) = (each.name for each in ml.online_endpoints.list() if str(each.name).startswith(model))
    assert [each.name for each in ml.online_deployments.list(endpoint)] == [second.deployment]
    assert ml.online_endpoints.get(endpoint).traffic == {second.deployment: 100}


def _dropped(azure: LocalAzure, model: str, name: str, **behaviour: Any) -> tuple[str, str]:
    blob = f"{model}/data.jsonl"
    return blob, azure.drop(blob, instant.dataset(name, **behaviour))
