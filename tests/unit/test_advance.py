"""Moving runs, with the record store and Azure in memory: what happens once, what is repeated, which messages are sent.

Azure is a stand-in here, because what is tested is what the app makes of its failures; tests/e2e has the real parts.
"""

import base64
import copy
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import azure.functions as func
import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError

from function_app import advance, intake, observe, outcomes, settle, steps
from function_app.errors import TransientError, UserError
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
                waits = run.wake_at and not run.asked
                overdue = run.wake_at + LATE if waits else changed + LONGEST_INVOCATION
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
        self.recipe: dict[str, object] = {}
        self.fingerprints: dict[str, str] = {}
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
        monkeypatch.setattr(advance.stray_traffic, "mend", lambda _, run: self._azure(f"mend {run.model}"))

    def _wake(self, id: str, dataset: object = None, at: datetime | None = None) -> None:
        self.messages.append((at or self.now, id, at.isoformat() if at else ""))

    def _take_in(self, run: Run, measured: object = None) -> None:
        run.numbers["dataset"] = {"train": 9, "eval": 1}
        run.fingerprint = self.fingerprints.get(run.dataset.etag, run.dataset.etag)
        run.recipe = dict(self.recipe)

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
        if self.traffic.get(place.name):
            self.traffic = {self.run(self.store.records[self.live][0]).deployment: 100}
            raise TransientError("the traffic is being given back")
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

    def ask(self, run: Run, action: str) -> None:
        """As the operations API does it, but for the message."""
        found = self.store.get(run.id)
        assert found is not None
        found[0].asked = Ask(action, "alice", self.now)  # type: ignore[arg-type]
        self.store.save(*found)

    def stages(self, run: Run) -> list[Stage]:
        return [event.stage for event in self.run(run).history]

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


def test_an_old_champion_whose_record_changes_just_then_is_retired_all_the_same(world: World) -> None:
    old, new = world.drop(), world.drop("0x2", minutes=1)
    go_live(world, old)
    world.done.clear()

    def changes() -> None:
        if world.done[-1:] == ["live record"]:
            world.store.before_save = lambda: None
            found = world.store.get(old.id)
            assert found is not None
            world.store.save(*found)

    world.store.before_save = changes
    go_live(world, new)
    assert world.run(old).stage == Stage.RETIRED
    assert world.done.count("live record") == 1


def test_a_late_invocation_tells_the_chat_nothing_and_retires_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.drop()
    others = world.other_deployments

    def meanwhile(late: Run) -> dict[Place, str]:
        """Another invocation takes the run live, and a later run after it, before this one goes on."""
        monkeypatch.setattr(world, "other_deployments", others)
        advance.advance(run.id)
        go_live(world, world.drop("0x2", minutes=1))
        world.done.clear()
        return others(late)

    monkeypatch.setattr(world, "other_deployments", meanwhile)
    world.job = JobSeen("Completed")
    advance.advance(run.id)
    assert "live record" not in world.done
    assert world.run(run).stage == Stage.RETIRED
    assert world.store.get(world.live) is not None
    assert world.live != run.id


def test_an_endpoint_that_is_created_by_a_late_invocation_has_its_traffic_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.drop()

    def slowly(late: Run) -> None:
        """Between the look that finds no endpoint and the request another invocation takes the run live."""
        monkeypatch.setattr(world, "observe_endpoint", observe_endpoint)
        advance.advance(run.id)
        assert world.run(run).stage == Stage.LIVE
        world.done.append("late request")

    observe_endpoint = world.observe_endpoint
    monkeypatch.setattr(world, "create_endpoint", slowly, raising=False)
    monkeypatch.setattr(world, "observe_endpoint", lambda _: ("", {}))
    world.job = JobSeen("Completed")
    advance.advance(run.id)
    assert world.done[-2:] == ["late request", "mend support"]


def test_a_job_that_is_submitted_after_the_run_was_cancelled_is_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.drop()
    submit = world.submit

    def slowly(late: Run, recipe: object) -> str:
        monkeypatch.setattr(world, "submit", submit)
        world.ask(run, "cancel")
        advance.advance(run.id)
        assert world.run(run).stage == Stage.CANCELLED
        assert world.run(run).cleanup == ""  # there was no job yet
        return submit(late, recipe)

    monkeypatch.setattr(world, "submit", slowly)
    advance.advance(run.id)
    world.done.clear()
    world.deliver()
    assert world.done == ["stop job"]
    world.job = JobSeen("Canceled")
    world.pass_time(minutes=1)
    world.deliver()
    assert not world.run(run).unsettled


def test_what_an_invocation_started_that_died_after_the_runs_end_is_looked_for(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    world.ask(run, "cancel")
    world.job = None  # the dead one's request arrives only after this look
    advance.advance(run.id)
    assert not world.run(run).unsettled
    world.job = JobSeen("Running")
    world.done.clear()
    message = func.QueueMessage(body=json.dumps({"run_id": run.id}).encode())
    advance.advance_run.build().get_user_function()(message)
    assert world.done == []
    advance.advance_run.build().get_user_function()(Again(body=message.get_body()))
    assert "stop job" in world.done


class Again(func.QueueMessage):
    """A message that the queue hands over a second time."""

    dequeue_count = 2


def test_a_deployment_that_always_vanishes_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.drop()
    monkeypatch.setattr(world, "create_deployment", lambda run, recipe: world.done.append("deploy"))
    world.job = JobSeen("Completed")
    advance.advance(run.id)
    for _ in range(10):
        world.pass_time(seconds=10)
        world.deliver()
    assert world.run(run).stage == Stage.FAILED
    assert world.done.count("deploy") == 4
    assert world.stages(run).count(Stage.DEPLOYING) == 1


def test_a_retry_waits_until_what_is_left_is_gone_and_trains_anew(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    world.ask(run, "cancel")
    advance.advance(run.id)
    assert world.run(run).cleanup == "job"  # it is still stopping
    world.ask(run, "retry")
    advance.advance(run.id)
    assert world.run(run).stage == Stage.CANCELLED
    world.job = None
    for _ in range(3):
        world.pass_time(minutes=1)
        world.deliver()
    assert world.run(run).stage == Stage.TRAINING
    assert world.run(run).job == f"{run.id}-1"


def test_a_wish_that_azure_does_not_let_answer_is_given_up(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    world.job = JobSeen("Failed")
    advance.advance(run.id)
    world.ask(run, "retry")
    world.failure = unavailable()
    for _ in range(20):
        advance.advance(run.id)
        world.pass_time(minutes=20)
    assert world.run(run).asked is None
    assert world.run(run).stage == Stage.FAILED


def test_a_model_that_is_retired_keeps_the_next_release_waiting_until_its_endpoint_is_gone(world: World) -> None:
    old = world.drop()
    go_live(world, old)
    new = world.drop("0x2", minutes=1)
    world.job = JobSeen("Running")
    advance.advance(new.id)
    world.ask(old, "retire")
    advance.advance(old.id)
    assert world.run(old).stage == Stage.RETIRED
    assert (world.live, world.run(old).cleanup) == ("", "endpoint")
    world.job = JobSeen("Completed")
    advance.advance(new.id)
    assert world.run(new).stage == Stage.REGISTERED  # the endpoint is not gone yet
    assert not world.run(new).holds_turn
    for _ in range(3):
        world.pass_time(minutes=1)
        world.deliver()
    assert not world.run(old).unsettled
    assert world.run(new).stage == Stage.LIVE


def test_traffic_that_a_late_invocation_has_shifted_back_is_put_right_before_the_champion_goes(world: World) -> None:
    old, new = world.drop(), world.drop("0x2", minutes=1)
    go_live(world, old)
    go_live(world, new)
    world.traffic = {new.deployment: 10, old.deployment: 90}
    world.done.clear()
    for _ in range(14):
        world.pass_time(minutes=1)
        world.deliver()
    assert world.done == [f"delete {old.deployment}"]
    assert world.traffic == {new.deployment: 100}


def test_the_bake_time_wakes_nobody_and_a_lost_message_is_found(world: World, datasets: Callable[..., None]) -> None:
    datasets()
    old, new = world.drop(), world.drop("0x2", minutes=1)
    go_live(world, old)
    go_live(world, new)
    world.messages.clear()  # all are lost
    world.pass_time(minutes=11)
    sweep()
    assert world.messages == []  # the message for the end of the ten minutes is not late yet
    world.pass_time(minutes=2)
    sweep()
    assert [id for _, id, _ in world.messages] == [new.id]


def test_a_wish_whose_message_was_lost_is_found(world: World, datasets: Callable[..., None]) -> None:
    datasets()
    run = world.drop()
    world.recipe = {"gate": {"rule": "manual"}}
    world.job = JobSeen("Completed")
    advance.advance(run.id)
    assert world.run(run).stage == Stage.TRAINED
    world.messages.clear()
    world.ask(run, "approve")
    world.pass_time(minutes=13)  # of six hours
    sweep()
    world.deliver()
    assert world.run(run).stage == Stage.LIVE


def test_one_that_waits_for_approval_is_overtaken(world: World) -> None:
    first = world.drop()
    world.recipe = {"gate": {"rule": "manual"}}
    world.job = JobSeen("Completed")
    advance.advance(first.id)
    advance.advance(world.drop("0x2", minutes=1).id)
    world.ask(first, "approve")
    advance.advance(first.id)
    assert world.run(first).stage == Stage.SUPERSEDED


def test_who_drops_a_file_another_one_and_the_first_again_gets_the_first(world: World) -> None:
    world.fingerprints = {"0x3": "0x1"}
    first, other, again = world.drop(), world.drop("0x2", minutes=1), world.drop("0x3", minutes=2)
    advance.advance(first.id)
    advance.advance(other.id)
    advance.advance(again.id)
    advance.advance(first.id)
    advance.advance(other.id)
    assert [world.run(each).stage for each in (first, other, again)] == [
        Stage.SUPERSEDED, Stage.SUPERSEDED, Stage.TRAINING,
    ]  # fmt: skip


def count_listings(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    """The stage of the first run at each listing of the model's runs."""
    listings: list[Stage] = []
    summaries = world.store.summaries

    def counted(prefix: str = "") -> Iterator[Summary]:
        listings.append(next(iter(world.store.records.values()))[0].stage)
        return summaries(prefix)

    monkeypatch.setattr(world.store, "summaries", counted)
    return listings


def test_one_listing_of_the_model_s_runs_serves_the_steps_of_an_invocation(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = count_listings(world, monkeypatch)
    run = world.drop()
    advance.advance(run.id)
    assert listings == [Stage.VALIDATED, Stage.TRAINING]  # both anew: of twins, and of newer data
    listings.clear()
    world.job = JobSeen("Completed")
    advance.advance(run.id)
    assert world.run(run).stage == Stage.LIVE
    # One for all steps, one for the runs that it replaces, one for those that waited for its turn.
    assert listings == [Stage.TRAINING, Stage.SHIFTING, Stage.LIVE]
    # A listing is good for a moment, not for as long as a slow deployment takes to answer.
    monkeypatch.setattr(observe, "MOMENT", 0)
    other = world.drop("0x2", minutes=1)
    listings.clear()
    advance.advance(other.id)
    assert len(listings) > 5


def test_newer_data_that_comes_while_the_deployment_is_asked_for_long_overtakes_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "MOMENT", 0)
    run, verify = world.drop(), world.verify

    def asked_for_long(run: Run) -> str:
        newer = world.drop("0x2", minutes=1)
        newer.move(Stage.VALIDATED, "for the test", world.now)
        world.store.save(newer, "1")
        return verify(run)

    monkeypatch.setattr(world, "verify", asked_for_long)
    world.job = JobSeen("Completed")
    advance.advance(run.id)
    assert world.run(run).stage == Stage.SUPERSEDED


def test_the_same_file_again_is_not_trained_again(world: World) -> None:
    world.fingerprints = {"0x2": "0x1"}
    first, again = world.drop(), world.drop("0x2", minutes=1)
    advance.advance(first.id)
    advance.advance(again.id)
    assert [world.run(each).stage for each in (first, again)] == [Stage.TRAINING, Stage.SUPERSEDED]


def failing(status: int, **headers: str) -> HttpResponseError:
    error = HttpResponseError("busy")
    error.status_code = status
    error.response = type("Response", (), {"headers": {name.replace("_", "-"): at for name, at in headers.items()}})()
    return error


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (failing(503), 1.5, 2.5),
        (failing(429, Retry_After="120"), 120, 120),
        (failing(429, Retry_After="1"), 1.5, 2.5),  # sooner than the app would
        (failing(429, Retry_After="1000000"), 3600, 3600),
        (failing(429, Retry_After="nan"), 1.5, 2.5),
        (failing(503, Retry_After="Sat, 21 Nov 2026 10:05:00 GMT"), 1.5, 2.5),
        (TransientError("not yet"), 1.5, 2.5),
    ],
)
def test_the_next_attempt_waits_as_long_as_azure_asks(
    world: World, error: Exception, least: float, most: float
) -> None:
    run = world.drop()
    advance.advance(run.id)
    world.failure = error
    world.pass_time(minutes=5)
    world.deliver()
    waits = [(at - world.now).total_seconds() for at, _, _ in world.messages]
    assert len(waits) == 1
    assert least <= waits[0] <= most


def test_a_run_has_a_budget_of_failures_beside_that_of_each_step(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    for _ in range(70):
        world.failure = unavailable()
        world.pass_time(minutes=6)
        world.deliver()
        world.failure = None
        world.pass_time(minutes=6)
        world.deliver()
    assert world.run(run).stage == Stage.FAILED
    assert world.run(run).history[-1].reason == "gave up after 60 failures of all its steps, the last: busy"


def test_a_step_that_fails_past_its_stages_deadline_is_given_up(world: World) -> None:
    run = world.drop()
    advance.advance(run.id)
    world.pass_time(days=6)
    world.failure = unavailable()
    world.deliver()
    assert world.run(run).stage == Stage.FAILED
    assert "gave up after more than 5 days, 12:00:00 at this stage: busy" in world.run(run).history[-1].reason


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
