"""Twenty schedules of faults hold, and the suite sees a bug when there is one."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from function_app import azure_clients, release_managed, turn
from function_app.engines import command
from function_app.runs import Run

from .clock import Clock
from .faults import Faults, Rates
from .harness import FUNCTIONS
from .running import LocalWorld, local_world, play
from .schedule import Drop, Schedule, Wish, draw

SEEDS = range(20)
CALM = Rates(passing=0, lasting=0, kill=0, race=0)


@pytest.fixture(scope="module")
def world() -> Iterator[LocalWorld]:
    with local_world() as running:
        yield running


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_is_right_after_a_schedule_of_faults(seed: int, world: LocalWorld) -> None:
    played = play(seed, world)
    assert not played.violations, "\n".join([played.schedule.in_words, *played.violations, *played.trace])


def test_a_seed_gives_the_same_schedule_and_the_same_faults() -> None:
    assert draw(7) == draw(7) != draw(8)
    assert _struck(7) == _struck(7) != _struck(8)
    assert len(_struck(7)) > 3


def _struck(seed: int) -> list[str]:
    """The faults of a thousand calls."""
    noted: list[str] = []
    faults = Faults(seed, draw(1).rates, Clock(datetime.now(UTC)), lambda: None, noted.append)
    faults.active = True
    for number in range(1000):
        url = f"https://storage/account/runs/{number % 10}.json"
        faults.plan(SimpleNamespace(method="PUT", url=url))
    return noted


# --- what the suite sees when the app has a bug ---


def test_a_run_that_forgets_that_it_has_submitted_its_job_is_seen(
    world: LocalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = command.submit

    def twice(run: Run, recipe: Any) -> str:
        submit(msgspec.structs.replace(run, generation=uuid.uuid4().int % 1000 + 1), recipe)
        return submit(run, recipe)

    monkeypatch.setattr(command, "submit", twice)
    assert "has the jobs" in _seen(world, 1001, [_drop(0, 0)])


def test_a_deployment_that_is_discarded_before_its_traffic_is_given_back_is_seen(
    world: LocalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded = release_managed.discarded

    def taking_away(run: Run) -> bool:
        endpoints = azure_clients.ml_client().online_endpoints
        endpoint = endpoints.get(release_managed.endpoint_name(run))
        if not (endpoint.traffic or {}).get(run.deployment):
            return discarded(run)
        endpoint.traffic = {}
        endpoints.begin_create_or_update(endpoint)
        return False

    monkeypatch.setattr(release_managed, "discarded", taking_away)
    assert "the traffic goes to" in _seen(world, 1002, [_drop(0, 0), _drop(1, 2000, "empty_later")])


def test_two_releases_at_once_are_seen(world: LocalWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "take", lambda runs, run: True)
    monkeypatch.setattr(turn, "holder", lambda runs, run: "")
    assert _seen(world, 1003, [_drop(0, 0), _drop(1, 2000), _drop(2, 2030)])


def test_a_cancelled_job_that_nobody_stops_is_seen(world: LocalWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "stopped", lambda run: True)
    assert "nobody stops the job" in _seen(world, 1004, [_drop(0, 0, training=4000)], [Wish(60, "cancel", 0)])


def test_a_file_whose_event_is_lost_and_that_no_sweep_finds_is_seen(
    world: LocalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FUNCTIONS, "sweep", lambda timer: None)
    assert "does not come to an end" in _seen(world, 1005, [_drop(0, 0)], deaf=True)


def _drop(number: int, at: float, kind: str = "good", training: float = 5, starting: float = 2) -> Drop:
    return Drop(number, at, f"data-{number}.jsonl", kind, training, starting)


def _seen(world: LocalWorld, seed: int, drops: list[Drop], wishes: list[Wish] | None = None, deaf: bool = False) -> str:
    """What the suite says of a schedule in which nothing goes wrong but the app itself."""
    schedule = Schedule(
        seed, drops, wishes or [], CALM, lose_events=0, repeat_events=0, lose_messages=0, repeat_messages=0, skew=0,
        deaf=deaf,
    )  # fmt: skip
    return "; ".join(play(seed, world, schedule).violations)
