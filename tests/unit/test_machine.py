"""The state machine, walked through as a whole: every state that a run and all around it can come to, and every step.

The model and the app's code that takes the steps in it are in machine_model.py.
"""

import logging
from collections.abc import Callable, Iterator

import pytest
from machine_model import AGES, Here, State, begin, calm, moves

from function_app import lifecycle, steps
from function_app.observation import Observation
from function_app.runs import ENDS, Run, Stage
from function_app.step_kinds import (
    CheckDeployment,
    CreateDeployment,
    CreateEndpoint,
    Finish,
    GoLive,
    Move,
    Nothing,
    Resume,
    ShiftTraffic,
    Step,
    Wait,
)

ORDER = list(Stage)
BAD_ENDS = frozenset({Stage.REJECTED, Stage.FAILED, Stage.CANCELLED, Stage.SUPERSEDED})
CHANGES_ENDPOINT = (CreateEndpoint, CreateDeployment, ShiftTraffic)
BEGINNINGS = [
    begin(),
    begin(champion=True),
    begin(manual=True),
    begin(safety=True),
    begin(champion=True, rollback=True),
]


class Walk:
    """Every state that can be reached from a beginning, with what leads from each to which. Checks as it goes."""

    def __init__(self, here: Here, *beginnings: State) -> None:
        self.here = here
        self.kinds: set[type[Step]] = set()
        self.edges: dict[State, list[tuple[str, State]]] = {}
        queue = list(beginnings)
        while queue:
            state = queue.pop()
            if state not in self.edges:
                self.edges[state] = list(self._from(state))
                queue += [after for _, after in self.edges[state]]

    def _from(self, state: State) -> Iterator[tuple[str, State]]:
        yield from moves(state)
        step, after, dead = self.here.step(state)
        self.kinds.add(type(step))
        check_step(state, step, after)
        if isinstance(step, Wait):
            assert state.age < len(AGES) - 1, f"waits for ever: {step} {state}"
            return
        if after != state:
            yield "step", after
        if dead != state:
            yield "fault dies before it saves", dead
            self._check_twice(state, after, dead)
        if not state.ended and not state.asked:
            _, refused, _ = self.here.step(state, refuses=True)
            yield "fault refused", refused

    def _check_twice(self, state: State, after: State, dead: State) -> None:
        """The step that is taken again leads to where it leads when it is taken once, if it is not found to be done."""
        once, found = self._calm(after), calm(dead)
        if timeless(found) == once:
            return
        step, again, _ = self.here.step(found)
        assert self._calm(again) == once, f"twice is not once: {state} {step} {again}"

    def _calm(self, state: State) -> State:
        """When all that was asked of Azure is done; of an end, all that it leaves to be done besides."""
        return timeless(calm(settled(self.here, state)))

    def check_ends(self) -> None:
        """Each walk that goes on ends: time and the app's steps lead out of every circle of what else may happen."""
        group = components({state: [to for kind, to in edges if not kind.startswith("person")]
                            for state, edges in self.edges.items()})  # fmt: skip
        for state, edges in self.edges.items():
            for kind, after in edges:
                # An end that is being cleaned up may meet the same fault again and again; it waits in between.
                round_again = kind == "step" and group[state] == group[after] and not state.ended
                assert not round_again, f"goes round for ever: {state} {after}"
            # At the last age the time leads nowhere any more, so a step must.
            if state.age == len(AGES) - 1 and not state.ended:
                assert any(kind == "step" for kind, _ in edges), f"stands still: {state}"

    def check_settled(self) -> None:
        """What has ended leaves nothing behind that costs money, once all that was asked of Azure is done."""
        for state in {each._replace(asked="") for each in self.edges if each.ended and not each.told}:
            left = settled(self.here, state)
            assert not left.cleanup, f"is never cleaned up: {state}"
            if left.stage in BAD_ENDS:
                assert left.job != "Running", f"its job runs on: {state}"
                assert not left.deployment, f"its deployment stays: {state}"
                assert not left.traffic, f"its traffic stays: {state}"


def check_step(state: State, step: Step, after: State) -> None:
    """What must hold of each step for itself."""
    if not isinstance(step, Resume):
        assert ORDER.index(after.stage) >= ORDER.index(state.stage), f"goes back: {state} {step}"
    if isinstance(step, (Move, Finish)):
        assert step.reason
        assert (step.stage in ENDS) == isinstance(step, Finish)
    if isinstance(step, Nothing):
        assert state.ended
    if isinstance(step, CHANGES_ENDPOINT) and after.stage not in BAD_ENDS:
        assert state.holds_turn, f"without the model's turn: {state} {step}"
        assert not state.releasing, f"in the turn of another: {state} {step}"
    if isinstance(step, (ShiftTraffic, CheckDeployment, GoLive)):
        assert state.deployment == "Succeeded"
    if isinstance(step, ShiftTraffic):
        assert step.share >= state.share
        asked_again = state.share in (state.checked, step.share)
        assert asked_again or not state.champion, f"not asked again before it got more: {state}"
    if isinstance(step, GoLive):
        assert (state.endpoint, state.traffic, state.share) == ("Succeeded", 100, 100)
    if after.stage in (Stage.CANCELLED, Stage.SUPERSEDED):
        assert not (state.told and state.share == 100), f"the chat may be answered by it: {state}"
    if isinstance(step, Resume):
        assert after.job != "Running"
        assert not after.holds_turn


def timeless(state: State) -> State:
    return state._replace(age=0, tries=0)


def settled(here: Here, state: State) -> State:
    """The end when Azure does what it is asked for, the new deployment is well, and no other run is in the way."""
    state = state._replace(releasing=False)
    for _ in range(8):
        if state.ended and (state.cleanup or state.asked):
            state = state._replace(age=len(AGES) - 1)
            if state.stage == Stage.LIVE:
                state = state._replace(deployment="Succeeded")
            state = calm(here.step(state)[1])
    return state


def components(graph: dict[State, list[State]]) -> dict[State, int]:
    """The strongly connected component of each state (Tarjan's algorithm, with a stack of its own)."""
    number: dict[State, int] = {}
    low: dict[State, int] = {}
    group: dict[State, int] = {}
    path: list[State] = []
    for root in graph:
        work = [(root, iter(graph[root]))] if root not in number else []
        while work:
            state, rest = work[-1]
            if state not in number:
                number[state] = low[state] = len(number)
                path.append(state)
            for after in rest:
                if after not in number:
                    work.append((after, iter(graph[after])))
                    break
                if after not in group:
                    low[state] = min(low[state], number[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[state])
                if low[state] == number[state]:
                    while state not in group:
                        group[path.pop()] = number[state]
    return group


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    logging.disable(logging.CRITICAL)
    yield Here(monkeypatch)
    logging.disable(logging.NOTSET)


def test_every_walk_ends_none_goes_back_and_twice_is_once(here: Here) -> None:
    walk = Walk(here, *BEGINNINGS)
    walk.check_ends()
    walk.check_settled()
    # Or the walk would show nothing.
    assert walk.kinds == set(Step.__subclasses__())
    assert {state.stage for state in walk.edges} == set(Stage)
    assert {state.stopped_at for state in walk.edges} >= set(lifecycle.DEADLINES), "taken up again from each stage"


def deploys_for_ever(run: Run, seen: Observation) -> Step | None:
    return CreateDeployment() if run.stage == Stage.DEPLOYING and not seen.deployment else None


def waits_for_ever(run: Run, seen: Observation) -> Step | None:
    running = run.stage == Stage.TRAINING and not run.asked and seen.job and seen.job.status == "Running"
    return Wait(lifecycle.JOB_POLL, "the job is Running") if running else None


def deploys_again(run: Run, seen: Observation) -> Step | None:
    lost = run.stage == Stage.SHIFTING and not seen.deployment
    return Move(Stage.REGISTERED, "the deployment is lost") if lost else None


def shifts_back(run: Run, seen: Observation) -> Step | None:
    ready = seen.deployment and (seen.deployment.state, seen.endpoint_state) == ("Succeeded", "Succeeded")
    shifting = run.stage == Stage.SHIFTING and ready and seen.champion and not run.asked
    other = run.share and seen.traffic.get(run.deployment) != run.share
    return ShiftTraffic(run.share) if shifting and other and run.tries == 0 else None


def cancels_what_answers(run: Run, seen: Observation) -> Step | None:
    cancelled = run.stage == Stage.SHIFTING and run.asked and run.asked.action == "cancel"
    return Finish(Stage.CANCELLED, "cancelled") if cancelled else None


def takes_no_turn(run: Run, seen: Observation) -> Step | None:
    return CreateDeployment() if run.stage == Stage.REGISTERED and seen.endpoint_state == "Succeeded" else None


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (deploys_for_ever, "goes round for ever"),
        (waits_for_ever, "waits for ever"),
        (deploys_again, "goes back"),
        (shifts_back, "twice is not once"),
        (cancels_what_answers, "the chat may be answered by it"),
        (takes_no_turn, "without the model's turn"),
    ],
)
def test_the_walk_finds_a_fault_that_is_planted(
    here: Here, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Run, Observation], Step | None], found: str
) -> None:
    right = lifecycle.next_step
    monkeypatch.setattr(steps, "next_step", lambda run, seen, now: fault(run, seen) or right(run, seen, now))
    champion = fault in (shifts_back, cancels_what_answers, takes_no_turn)
    with pytest.raises(AssertionError, match=found):
        Walk(here, begin(champion=champion, rollback=fault is not waits_for_ever and not champion)).check_ends()
