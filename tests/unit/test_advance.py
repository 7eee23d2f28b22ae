"""Moving runs, with the record store and Azure in memory: what happens once, what is repeated, which messages are sent.

Azure is a stand-in here, because what is tested is what the app makes of its failures; tests/e2e has the real parts.
"""

import base64
import copy
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError

from function_app import advance, intake, observe, outcomes, settle, steps
from function_app.errors import UserError
from function_app.observation import DeploymentSeen, JobSeen
from function_app.release import Place
from function_app.runs import (
    LATE,
    LONGEST_INVOCATION,
    Ask,
    Conflict,
    DatasetVersion,
    Run,
    Stage,
    Summary,
    new_run,
    run_id,
)

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


class MemoryStore:
    """Run records in memory, with ETags."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.records: dict[str, tuple[Run, int, datetime]] = {}
        self._clock = clock
        self.before_save: Callable[[], None] = lambda: None

    def get(self, id: str) -> tuple[Run, str] | None:
        found = self.records.get(id)
        return (copy.deepcopy(found[0]), str(found[1])) if found else None

    def create(self, run: Run) -> str:
        if run.id in self.records:
            return ""
        self.records[run.id] = (copy.deepcopy(run), 1, self._clock())
        return "1"

    def save(self, run: Run, etag: str) -> str:
        self.before_save()
        _, version, _ = self.records[run.id]
        if str(version) != etag:
            raise Conflict(run.id)
        self.records[run.id] = (copy.deepcopy(run), version + 1, self._clock())
        return str(version + 1)

    def summaries(self, prefix: str = "") -> Iterator[Summary]:
        for run, _, changed in list(self.records.values()):
            if run.id.startswith(prefix):
                overdue = run.wake_at + LATE if run.wake_at else changed + LONGEST_INVOCATION
                yield Summary(
                    run.id,
                    run.model,
                    run.stage,
                    run.dataset.uploaded_at,
                    overdue,
                    run.fingerprint,
                    run.ended and run.unsettled,
                    bool(run.release_of),
                )


class Peeked:
    """A message at the front of the queue, in base64 as our client peeks it."""

    def __init__(self, id: str, inserted_on: datetime, at: str, tries: int) -> None:
        content = {"run_id": id, "at": at} if at else {"run_id": id}
        self.content = base64.b64encode(json.dumps(content).encode()).decode()
        self.inserted_on, self.dequeue_count = inserted_on, tries


class World:
    """The store, the queue and Azure, as the app under test sees them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = START
        self.store = MemoryStore(lambda: self.now)
        self.messages: list[tuple[datetime, str, str]] = []
        self.job: JobSeen | None = None
        self.deployments: dict[str, DeploymentSeen] = {}
        self.traffic: dict[str, int] = {}
        self.live = ""
        self.done: list[str] = []
        self.failure: Exception | None = None
        self.beyond = ""  # what the engine says that it cannot do
        self.turn = ""
        self.content_safety_endpoint = ""
        self.tries = 0  # of the messages that wait
        monkeypatch.setattr(advance, "store", lambda: self.store)
        monkeypatch.setattr(advance, "wake", self._wake)
        monkeypatch.setattr(advance.azure_clients, "runs_queue", lambda: self)
        monkeypatch.setattr(advance, "utc_now", lambda: self.now)
        monkeypatch.setattr(steps, "utc_now", lambda: self.now)
        monkeypatch.setattr(settle, "utc_now", lambda: self.now)
        monkeypatch.setattr(intake, "take_in", self._take_in)
        monkeypatch.setattr(steps.engines, "engine", lambda _: self)
        for module in (steps, observe, settle):
            monkeypatch.setattr(module, "release", self)
            monkeypatch.setattr(module, "turn", self)
        monkeypatch.setattr(observe, "settings", lambda: self)
        monkeypatch.setattr(outcomes, "wanted", lambda: False)
        monkeypatch.setattr(advance.idle, "retire_idle", lambda *_: None)

    def _wake(self, id: str, dataset: object = None, at: datetime | None = None) -> None:
        self.messages.append((at or self.now, id, at.isoformat() if at else ""))

    def _take_in(self, run: Run, measured: object = None) -> None:
        run.numbers["dataset"] = {"train": 9, "eval": 1}
        run.fingerprint = run.dataset.etag

    def peek_messages(self, max_messages: int) -> list["Peeked"]:
        """What is visible, as azure-storage-queue shows it; one that was sent ahead was sent at the START."""
        due = [message for message in self.messages if message[0] <= self.now]
        return [Peeked(id, START if at else sent, at, self.tries) for sent, id, at in due][:max_messages]

    def _azure(self, what: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.done.append(what)

    # What an engine does.
    def check(self, run: Run, _: object) -> None:
        if self.beyond:
            raise UserError(self.beyond)

    def submit(self, run: Run, _: object) -> str:
        self._azure("submit")
        self.job = self.job or JobSeen("Running")
        return "https://studio"

    def observe(self, run: Run) -> JobSeen | None:
        self._azure("look")
        return self.job

    def results(self, run: Run) -> dict[str, object]:
        return {"eval": {"base": {"loss": 2.0}, "tuned": {"loss": 1.0}}}

    def stopped(self, run: Run) -> bool:
        self._azure("stop job")
        return self.job is None or self.job.status != "Running"

    # What turn.py does.
    def holder(self, store: object, run: Run) -> str:
        found = self.store.get(self.turn) if self.turn != run.id else None
        free = found is None or (found[0].ended and found[0].cleanup not in ("deployment", "endpoint"))
        return "" if free else self.turn

    def take(self, store: object, run: Run) -> bool:
        if self.holder(store, run):
            return False
        self.turn = run.id
        return True

    # What release.py does.
    def place_in_words(self, run: Run) -> str:
        return run.deployment

    def register(self, run: Run) -> tuple[str, str]:
        self._azure("register")
        return run.model, run.model_version

    def observe_endpoint(self, run: Run) -> tuple[str, dict[str, int]]:
        return "Succeeded", self.traffic

    def observe_deployment(self, run: Run) -> DeploymentSeen | None:
        return self.deployments.get(run.deployment)

    def create_deployment(self, run: Run, _: object) -> None:
        self._azure("deploy")
        self.deployments[run.deployment] = DeploymentSeen("Succeeded")

    def verify(self, run: Run) -> str:
        self._azure("verify")
        return "answered"

    def champion(self, run: Run) -> str:
        found = self.store.get(self.live)
        name = found[0].deployment if found else ""
        return name if name in self.deployments and name != run.deployment else ""

    def shift_traffic(self, run: Run, share: int) -> None:
        self._azure(f"shift {share}")
        champion = self.champion(run)
        self.traffic = {run.deployment: share} | ({champion: 100 - share} if champion and share < 100 else {})

    def write_live_record(self, run: Run, check: Callable[[], None]) -> None:
        check()
        self._azure("live record")
        self.live = run.id

    def other_deployments(self, run: Run) -> dict[Place, str]:
        ids = {r.deployment: r.id for r, _, _ in self.store.records.values()}
        return {Place("managed", name): ids[name] for name in self.deployments if name != run.deployment}

    def delete_deployment(self, run: Run, place: Place) -> None:
        self._azure(f"delete {place.name}")
        self.deployments.pop(place.name, None)

    def discarded(self, run: Run) -> bool:
        self._azure(f"discard {run.deployment}")
        return self.live == run.id or self.deployments.pop(run.deployment, None) is None

    def retired(self, run: Run) -> bool:
        self._azure("retire")
        if self.live == run.id:
            self.live, self.deployments, self.traffic = "", {}, {}
            return False
        return True

    # The test's own hands.
    def drop(self, etag: str = "0x1", minutes: int = 0) -> Run:
        uploaded = self.now + timedelta(minutes=minutes)
        run = new_run("support", DatasetVersion("support/a.jsonl", etag, 10, uploaded), self.now)
        self.store.create(run)
        return run

    def run(self, run: Run) -> Run:
        return self.store.records[run.id][0]

    def deliver(self) -> int:
        """Hand over every message that is due; return how many there were."""
        due = [message for message in self.messages if message[0] <= self.now]
        self.messages = [message for message in self.messages if message[0] > self.now]
        for _, id, at in due:
            advance.advance(id, at=at)
        return len(due)

    def pass_time(self, **delta: float) -> None:
        self.now += timedelta(**delta)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def unavailable() -> HttpResponseError:
    error = HttpResponseError("busy")
    error.status_code = 503
    return error


def test_a_run_goes_to_the_job_and_after_it_to_live(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    assert world.run(run).stage == Stage.TRAINING
    world.job = JobSeen("Completed")
    advance.advance(run.id)
    assert world.run(run).stage == Stage.LIVE
    assert [what for what in world.done if what != "look"] == [
        "submit", "register", "deploy", "verify", "shift 100", "live record",
    ]  # fmt: skip


def test_what_the_engine_cannot_do_rejects_the_run_before_anything_is_submitted(world: World) -> None:
    run = world.drop()
    world.beyond = "method qlora needs a GPU"
    advance.advance(run.id)
    assert world.run(run).stage == Stage.REJECTED
    assert world.run(run).history[-1].reason == "method qlora needs a GPU"
    assert "submit" not in world.done


def test_events_do_not_multiply_the_messages_of_a_waiting_run(world: World) -> None:
    run = world.drop()
    for _ in range(5):
        advance.advance(run.id)
    assert len(world.messages) == 1
    for _ in range(20):
        world.pass_time(minutes=5)
        assert world.deliver() == 1
        advance.advance(run.id)  # and an event beside it
        assert len(world.messages) == 1


def test_events_do_not_multiply_the_messages_of_a_run_that_azure_fails(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    world.failure = unavailable()
    for _ in range(4):
        advance.advance(run.id)
    # The poll of the healthy wait is still under way; one earlier retry came in front of it.
    assert len(world.messages) == 2
    assert world.run(run).attempts == 1


def test_only_failures_in_a_row_count(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    for _ in range(30):
        for failure in (unavailable(), None):
            world.failure = failure
            world.pass_time(minutes=5)
            world.deliver()
    assert world.run(run).stage == Stage.TRAINING
    world.failure = unavailable()
    for _ in range(20):
        world.pass_time(minutes=20)
        world.deliver()
    assert world.run(run).stage == Stage.FAILED
    assert "gave up after 8 attempts: busy" in world.run(run).history[-1].reason


@pytest.mark.parametrize("failure", [ClientAuthenticationError("no token"), ServiceRequestError("no route")])
def test_a_missing_token_or_connection_is_tried_again(world: World, failure: Exception) -> None:
    run = world.drop()
    advance.advance(run.id)
    world.failure = failure
    world.pass_time(minutes=5)
    world.deliver()
    world.failure, world.job = None, JobSeen("Completed")
    world.pass_time(seconds=5)
    world.deliver()
    assert world.run(run).stage == Stage.LIVE


def test_what_azure_refuses_ends_the_run_with_azures_words(world: World) -> None:
    run = world.drop()
    refused = HttpResponseError("(UserError) no quota for this size")
    refused.status_code = 400
    world.failure = refused
    advance.advance(run.id)
    assert world.run(run).stage == Stage.FAILED
    assert "no quota" in world.run(run).history[-1].reason


def test_an_invocation_that_was_overtaken_stops_nothing(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    world.job = JobSeen("Failed", "lost")

    def moved_by_another() -> None:
        world.store.before_save = lambda: None
        stored, version, changed = world.store.records[run.id]
        world.store.records[run.id] = (stored, version + 1, changed)

    world.store.before_save = moved_by_another
    world.done.clear()
    advance.advance(run.id)
    assert world.run(run).stage == Stage.TRAINING
    assert "stop job" not in world.done


def test_what_a_superseded_run_has_started_is_stopped_until_it_is_gone(world: World) -> None:
    first = world.drop()
    advance.advance(first.id)
    second = world.drop("0x2", minutes=1)
    advance.advance(second.id)
    world.failure = None
    advance.advance(first.id)
    assert world.run(first).stage == Stage.SUPERSEDED
    assert world.run(first).cleanup == "job"
    assert world.done.count("stop job") == 1
    world.failure = unavailable()
    world.pass_time(minutes=1)
    world.deliver()
    assert world.run(first).cleanup == "job"
    world.failure, world.job = None, JobSeen("Canceled")
    world.pass_time(minutes=20)
    advance.advance(first.id)
    assert world.run(first).cleanup == ""


def go_live(world: World, run: Run) -> None:
    """Deliver what is due, minute by minute, until the run serves."""
    world.job = JobSeen("Completed")
    advance.advance(run.id)
    for _ in range(10):
        if world.run(run).stage == Stage.LIVE:
            return
        world.pass_time(minutes=1)
        world.deliver()
    raise AssertionError(world.run(run).history)


def test_a_second_run_takes_over_share_by_share(world: World) -> None:
    old, new = world.drop(), world.drop("0x2", minutes=1)
    go_live(world, old)
    world.done.clear()
    go_live(world, new)
    assert [what for what in world.done if what != "look"] == [
        "submit", "register", "deploy", "verify",
        "shift 10", "verify", "shift 50", "verify", "shift 100", "live record",
    ]  # fmt: skip
    assert world.run(old).stage == Stage.RETIRED
    assert set(world.deployments) == {old.deployment, new.deployment}
    world.pass_time(minutes=9)
    world.deliver()
    assert set(world.deployments) == {old.deployment, new.deployment}
    for _ in range(3):
        world.pass_time(minutes=1)
        world.deliver()
    assert set(world.deployments) == {new.deployment}
    assert not world.run(new).unsettled


@pytest.mark.parametrize("dies_after", ["live record", "retired"])
def test_a_crash_while_going_live_still_retires_the_old_champion(world: World, dies_after: str) -> None:
    old, new = world.drop(), world.drop("0x2", minutes=1)
    go_live(world, old)

    world.done.clear()

    def crash() -> None:
        retired = world.run(old).stage == Stage.RETIRED
        if world.done[-1:] == ["live record"] and retired == (dies_after == "retired"):
            raise KeyboardInterrupt

    world.store.before_save = crash
    with pytest.raises(KeyboardInterrupt):
        go_live(world, new)
    world.store.before_save = lambda: None
    # A person's wish comes too late: the chat has been told.
    record, etag = world.store.records[new.id][0], str(world.store.records[new.id][1])
    record.asked = Ask("cancel", "alice", world.now)
    world.store.save(record, etag)
    advance.advance(new.id)
    assert world.run(new).stage == Stage.LIVE
    assert world.run(old).stage == Stage.RETIRED
    assert world.live == new.id


def test_a_killed_invocation_is_continued_where_the_record_is(world: World) -> None:
    old, run = world.drop(), world.drop("0x2", minutes=1)
    go_live(world, old)
    saves = 0

    def crash_at(number: int) -> None:
        nonlocal saves
        saves += 1
        if saves == number:
            raise KeyboardInterrupt

    for number in range(1, 12):
        saves = 0
        world.store.before_save = lambda number=number: crash_at(number)  # type: ignore[misc]
        try:
            advance.advance(run.id)
        except KeyboardInterrupt:
            continue
        world.pass_time(minutes=1)
    world.store.before_save = lambda: None
    go_live(world, run)
    stages = [event.stage for event in world.run(run).history]
    assert [(stage, stages.count(stage)) for stage in dict.fromkeys(stages) if stages.count(stage) > 1] == [
        (Stage.SHIFTING, 4)  # once for each share
    ]
    assert world.traffic == {run.deployment: 100}


class Blob:
    def __init__(self, name: str, etag: str, changed: datetime) -> None:
        self.name, self.etag, self.last_modified = name, f'"{etag}"', changed


class Datasets:
    def __init__(self, *blobs: Blob) -> None:
        self._blobs = blobs

    def list_blobs(self, **_: object) -> list[Blob]:
        return list(self._blobs)


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what lies in the datasets container."""

    class Names:
        datasets_container = "datasets"

    def put(*blobs: Blob) -> None:
        monkeypatch.setattr(advance, "settings", Names)
        monkeypatch.setattr(advance.azure_clients, "container", lambda _: Datasets(*blobs))

    return put


def sweep() -> None:
    advance.sweep.build().get_user_function()(Timer())


def test_the_sweep_finds_files_without_a_run_and_runs_without_a_message(
    world: World, datasets: Callable[..., None]
) -> None:
    datasets(
        Blob("support/a.jsonl", "0x1", START - timedelta(hours=1)),
        Blob("support/recipe.yaml", "0x2", START - timedelta(hours=1)),
        Blob("support/lost.jsonl", "0x3", START - timedelta(hours=1)),
        Blob("support/young.jsonl", "0x4", START),
    )
    waiting = world.drop("0x1")
    advance.advance(waiting.id)
    lost = run_id("support", "support/lost.jsonl", "0x3")

    def swept() -> list[str]:
        world.messages.clear()
        sweep()
        return [id for _, id, _ in world.messages]

    assert swept() == [lost]
    # The waiting run's message was in what swept() cleared: it is lost.
    world.pass_time(minutes=8)
    assert waiting.id in swept()
    world.job = JobSeen("Completed")
    world.deliver()
    assert world.run(waiting).stage == Stage.LIVE


def test_sweeps_do_not_make_a_long_queue_longer(world: World, datasets: Callable[..., None]) -> None:
    datasets(*(Blob("support/a.jsonl", f"0x{number}", START - timedelta(hours=1)) for number in range(100)))
    sweep()  # all events were lost: each file is woken
    assert len(world.messages) == 100
    for _ in range(30):
        world.pass_time(seconds=20)
        world.messages.pop(0)  # one message in 20 s: the queue is behind
        sweep()
    assert len(world.messages) == 70
    world.messages.clear()
    sweep()  # none of the files has its record yet, and now no message either
    assert len(world.messages) == 100


def test_messages_that_were_sent_ahead_or_came_back_do_not_put_off_the_sweep(
    world: World, datasets: Callable[..., None]
) -> None:
    datasets(Blob("support/lost.jsonl", "0x3", START - timedelta(hours=1)))
    world.messages = [(START + timedelta(minutes=5), "ahead", (START + timedelta(minutes=5)).isoformat())]
    world.pass_time(minutes=5, seconds=1)
    sweep()  # the message was sent five minutes ago, but is due only now
    assert len(world.messages) == 2
    world.pass_time(minutes=1)
    sweep()
    assert len(world.messages) == 2
    world.tries = 3  # they fail, again and again: the sweep goes on
    sweep()
    assert len(world.messages) == 3


class Timer:
    past_due = False
