"""A model of everything around a run, small enough to walk through all of it (test_machine.py).

The app's own code takes the steps: steps.take with observe.py and lifecycle.py, and settle.py. Azure ML, the other
runs, people and the time are a handful of words each. ``Here.step`` takes one step from a state and returns the state
after it, and the one that is left when the process dies after the effect in Azure and before the record is saved;
``moves`` names all that may happen meanwhile.
"""

from collections.abc import Callable, Iterator
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from azure.core.exceptions import HttpResponseError

from function_app import content_safety, engines, intake, lifecycle, observe, outcomes, settle, steps
from function_app.errors import StepError
from function_app.observation import DeploymentSeen, JobSeen
from function_app.release import Place
from function_app.runs import ENDS, Ask, DatasetVersion, Event, Run, Stage, Summary
from function_app.settle import RELEASING
from function_app.step_kinds import Nothing, Step, Wait

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
# How long the run has been in its stage: not at all; longer than every pause between requests, and than a share's
# step, but not than a replaced model is kept; longer than anything.
AGES = (timedelta(0), timedelta(minutes=2), timedelta(days=60))
TRIES = 1  # instead of lifecycle.MAX_TRIES: one shows what three do
LOSSES = {"better": 1.0, "worse": 3.0}
BUSY = ("Creating", "Updating")
BEFORE_GATE = {Stage.RECEIVED, Stage.VALIDATED, Stage.TRAINING, Stage.TRAINED}


class State(NamedTuple):
    """The run's record as it is saved, and all that it does not know."""

    # The record.
    stage: Stage = Stage.RECEIVED
    stopped_at: Stage | None = None  # the stage before the end
    age: int = 0
    share: int = 0
    checked: int = 0
    tries: int = 0
    holds_turn: bool = False
    cleanup: str = ""
    asked: str = ""
    result: str = ""  # what the evaluation has shown; forgotten after the gate
    safe: bool = False  # content safety was asked; forgotten after the gate
    # Given by the recipe, the app's settings, or the person who asked for a rollback.
    manual: bool = False
    safety: bool = False
    rollback: bool = False
    # Azure ML.
    job: str = ""
    endpoint: str = ""
    deployment: str = ""
    champion: bool = False
    traffic: int = 0  # percent that the run's deployment gets; the champion gets the rest
    coming: int = 0  # what it gets when the endpoint has been updated
    told: bool = False  # the live record names the run
    # Other runs of the model.
    newer: bool = False
    releasing: bool = False
    twin: str = ""

    @property
    def ended(self) -> bool:
        return self.stage in ENDS


def begin(*, champion: bool = False, manual: bool = False, safety: bool = False, rollback: bool = False) -> State:
    """A run that was just made: of a dropped file, or a rollback."""
    endpoint = "Succeeded" if champion else ""
    stage = Stage.APPROVED if rollback else Stage.RECEIVED
    return State(stage, manual=manual, safety=safety, rollback=rollback, champion=champion, endpoint=endpoint)


class Here:
    """Stands in for Azure ML, the record store and the turn; holds the state that a step is taken from."""

    content_safety_endpoint = ""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = State()
        self.run = Run(id="", model="", dataset=DatasetVersion("", "", 0, NOW), received_at=NOW)
        self.refuses = False  # Azure, whatever it is asked for
        for module in (steps, settle):
            monkeypatch.setattr(module, "utc_now", lambda: NOW)
            monkeypatch.setattr(module, "release", self)
            monkeypatch.setattr(module, "turn", self)
        monkeypatch.setattr(lifecycle, "MAX_TRIES", TRIES)
        monkeypatch.setattr(observe, "release", self)
        monkeypatch.setattr(observe, "turn", self)
        monkeypatch.setattr(observe, "settings", lambda: self)
        monkeypatch.setattr(engines, "engine", lambda _: self)
        monkeypatch.setattr(intake, "take_in", self.take_in)
        monkeypatch.setattr(content_safety, "check", lambda _: self._asked({"severities": {}}))
        monkeypatch.setattr(outcomes, "wanted", lambda: False)

    def step(self, before: State, *, refuses: bool = False) -> tuple[Step, State, State]:
        """The step that is taken, the state after it, and that of a process which died before it could save."""
        self.state, self.refuses = before, refuses
        self.content_safety_endpoint = "https://safety" if before.safety else ""
        run = _record(before)
        self.run = copy(run)
        taken: Step = Nothing()
        if run.ended and run.cleanup:
            settle.settle(self, run, NOW)  # type: ignore[arg-type]
        if not run.ended or not run.cleanup or run.asked:
            taken = steps.take(self, run)  # type: ignore[arg-type]
        dead = self.state
        if isinstance(taken, Wait):
            return taken, before, dead
        if run.generation:  # the new job has a name of its own
            self.state = self.state._replace(job="")
        return taken, _saved(self.state, run), dead

    # The record store.
    def get(self, id: str) -> tuple[Run, str]:
        return self.run, "1"

    def summaries(self, prefix: str) -> Iterator[Summary]:
        newer = timedelta(hours=1)
        if self.state.newer:
            yield Summary("support-2", "support", Stage.VALIDATED, NOW + newer, NOW, "other", False)
        if self.state.twin:
            stage = Stage.TRAINING if self.state.twin == "ahead" else Stage.VALIDATED
            at = NOW - newer if self.state.twin == "earlier" else NOW + newer
            yield Summary("support-3", "support", stage, at, NOW, "same", False)

    # The turn.
    def holder(self, runs: object, run: Run) -> str:
        return "support-4" if self.state.releasing else ""

    def take(self, runs: object, run: Run) -> bool:
        return not self.state.releasing

    # The engine.
    def take_in(self, run: Run, measured: object) -> None:
        run.numbers["dataset"] = self._asked({"train": 9, "eval": 1})

    def check(self, run: Run, recipe: object) -> None:
        self._asked(None)

    def submit(self, run: Run, recipe: object) -> str:
        self.state = self.state._replace(job=self.state.job or "Running")
        return "https://studio"

    def observe(self, run: Run) -> JobSeen | None:
        return JobSeen(self.state.job) if self.state.job else None

    def results(self, run: Run) -> dict[str, Any]:
        return self._asked({"eval": {"base": {"loss": 2.0}, "tuned": {"loss": LOSSES[self.state.result]}}})

    def stopped(self, run: Run) -> bool:
        running = self.state.job == "Running"
        self.state = self.state._replace(job="Canceled" if running else self.state.job)
        return not running

    # The release.
    def place_in_words(self, run: Run) -> str:
        return "here"

    def register(self, run: Run) -> tuple[str, str]:
        return self._asked(("support", "1"))

    def observe_endpoint(self, run: Run) -> tuple[str, dict[str, int]]:
        mine = self.state.traffic
        return self.state.endpoint, {run.deployment: mine} | ({"r-old": 100 - mine} if self.state.champion else {})

    def observe_deployment(self, run: Run) -> DeploymentSeen | None:
        return DeploymentSeen(self.state.deployment) if self.state.deployment else None

    def champion(self, run: Run) -> str:
        return "r-old" if self.state.champion else ""

    def create_endpoint(self, run: Run) -> None:
        self._asked(None)
        self.state = self.state._replace(endpoint="Updating" if self.state.endpoint else "Creating")

    def create_deployment(self, run: Run, recipe: object) -> None:
        self._asked(None)
        if not self.state.endpoint:
            gone = HttpResponseError("the endpoint is gone")
            gone.status_code = 404
            raise gone
        self.state = self.state._replace(deployment="Creating")

    def verify(self, run: Run) -> str:
        return self._asked("answered")

    def shift_traffic(self, run: Run, share: int) -> None:
        self._asked(None)
        assert self.state.champion or share == 100, "requests would go nowhere"
        assert self.state.deployment == "Succeeded", "a model that is not ready would be asked"
        self.state = self.state._replace(endpoint="Updating", coming=share)

    def write_live_record(self, run: Run, check: Callable[[], None]) -> None:
        check()
        self.state = self.state._replace(told=True)

    def other_deployments(self, run: Run) -> dict[Place, str]:
        return self._asked({Place("managed", "r-old"): "old"} if self.state.champion else {})

    def delete_deployment(self, run: Run, place: Place) -> None:
        self.state = self.state._replace(champion=False)

    def discarded(self, run: Run) -> bool:
        if self.state.told or not self.state.endpoint:
            return True
        if self.state.traffic or self.state.coming:
            self.state = self.state._replace(traffic=0, coming=0, endpoint="Succeeded")
            return False
        gone = not self.state.deployment
        self.state = self.state._replace(deployment="")
        return gone

    def retired(self, run: Run) -> bool:
        gone = not self.state.endpoint
        self.state = _without_endpoint(self.state._replace(told=False))
        return gone

    def _asked(self, answer: Any) -> Any:
        if self.refuses:
            raise StepError("Azure refused")
        return answer


def moves(state: State) -> Iterator[tuple[str, State]]:
    """What may happen while nobody works on the run, as ``kind name`` and the state after it.

    The kinds: ``person`` (a wish), ``time``, ``azure`` (what was begun ends well), ``fault``, ``others``. A wish that
    waits to be answered is the last thing that happens: whatever comes after it could have come before.
    """
    if state.asked:
        return
    for action in ("approve", "reject", "cancel", "retry", "retire"):
        # Elsewhere all but the cancelling is forgotten, however long the run has been there.
        if action == "cancel" or state.ended or state.stage == Stage.TRAINED or not (state.age or state.tries):
            yield f"person {action}", state._replace(asked=action)
    if state.age < len(AGES) - 1 and (not state.ended or state.cleanup == "replaced"):
        yield "time passes", state._replace(age=state.age + 1)
    yield from (("azure " + name, after) for name, after in _done_well(state))
    yield from (("fault " + name, after) for name, after in _gone_wrong(state))
    if not state.ended and not state.rollback and not state.share:
        yield "others newer", state._replace(newer=not state.newer)
    if (state.stage == Stage.REGISTERED and not state.holds_turn) or state.cleanup == "endpoint":
        yield "others releasing", state._replace(releasing=not state.releasing)
    if state.stage == Stage.VALIDATED:
        for twin in ("", "ahead", "earlier", "later"):
            yield "others twin", state._replace(twin=twin)


def calm(state: State) -> State:
    """The state when Azure ML has done well all that it was asked for."""
    while found := next(_done_well(state), None):
        state = found[1]
    return state


def _done_well(state: State) -> Iterator[tuple[str, State]]:
    if state.job == "Running":
        yield "job completes", state._replace(job="Completed", result="better")
    if state.endpoint in BUSY:
        traffic = state.coming or state.traffic
        yield "endpoint is ready", state._replace(endpoint="Succeeded", traffic=traffic, coming=0)
    if state.deployment in BUSY:
        yield "deployment is ready", state._replace(deployment="Succeeded")


def _gone_wrong(state: State) -> Iterator[tuple[str, State]]:
    if state.job == "Running":
        yield "job trains badly", state._replace(job="Completed", result="worse")
        for status in ("Failed", "Canceled", "NotResponding", ""):
            yield f"job {status}", state._replace(job=status)
    # What happens to the endpoint before the run looks at it may as well happen once it does.
    if not (state.stage in RELEASING or state.stage == Stage.LIVE or state.cleanup):
        return
    if state.endpoint and state.endpoint != "Failed":
        yield "endpoint fails", state._replace(endpoint="Failed", coming=0)
        yield "endpoint deleted", _without_endpoint(state)
    if state.deployment and state.deployment != "Failed":
        yield "deployment fails", state._replace(deployment="Failed")
    if state.deployment:
        yield "deployment deleted", state._replace(deployment="", traffic=0, coming=0)
    if state.champion:
        yield "champion deleted", state._replace(champion=False)
    if state.traffic and not state.coming:
        yield "traffic taken away", state._replace(traffic=0)


def _without_endpoint(state: State) -> State:
    return state._replace(endpoint="", deployment="", champion=False, traffic=0, coming=0)


def _record(state: State) -> Run:
    since = NOW - AGES[state.age]
    stages = [state.stopped_at, state.stage] if state.stopped_at else [state.stage]
    run = Run(
        id="support-0123456789ab", model="support", dataset=DatasetVersion("support/a.jsonl", "0x1", 10, NOW),
        received_at=since, stage=state.stage, history=[Event(since, stage, "before") for stage in stages],
        tries=state.tries, fingerprint="same", holds_turn=state.holds_turn, share=state.share, checked=state.checked,
        asked=Ask(state.asked, "alice", NOW) if state.asked else None,  # type: ignore[arg-type]
        cleanup=state.cleanup,  # type: ignore[arg-type]
        cleanup_at=since + timedelta(minutes=10) if state.cleanup == "replaced" else None,
        release_of="support-old" if state.rollback else "", recipe={"gate": {"rule": "manual"}} if state.manual else {},
    )  # fmt: skip
    if state.stage == Stage.TRAINED:
        run.numbers["eval"] = {"base": {"loss": 2.0}, "tuned": {"loss": LOSSES[state.result]}}
    if state.safe:
        run.numbers["safety"] = {"severities": {}}
    return run


def _saved(state: State, run: Run) -> State:
    """The state with the record as the step has left it; what nothing depends on any more is forgotten."""
    moved = run.history[-1].reason != "before"
    stopped_at = state.stopped_at
    if moved:
        stopped_at = run.history[-2].stage if run.stage in (Stage.FAILED, Stage.CANCELLED) else None
    before_gate = {run.stage, stopped_at} & BEFORE_GATE
    if run.ended:
        lost = "" if state.job not in ("Running", "Completed") else state.job
        state = state._replace(releasing=state.releasing and run.cleanup == "endpoint", job=lost)
    return state._replace(
        stage=run.stage,
        stopped_at=stopped_at,
        age=0 if moved or (run.ended and run.cleanup != "replaced") else state.age,
        share=0 if run.ended else run.share,
        checked=0 if run.ended else run.checked,
        tries=0 if run.ended else min(run.tries, TRIES + 1),
        holds_turn=run.holds_turn and not run.ended,
        cleanup=run.cleanup,
        asked=run.asked.action if run.asked else "",
        result=state.result if before_gate else "",
        safe="safety" in run.numbers and run.stage == Stage.TRAINED,
        manual=state.manual and bool(before_gate),
        safety=state.safety and bool(before_gate),
        newer=state.newer and not run.share and not run.ended,
        twin=state.twin if run.stage == Stage.VALIDATED else "",
    )
