"""The state machine: every reachable pair of stage and observation leads somewhere, and never backwards."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_app.gate import judge
from function_app.lifecycle import next_step
from function_app.observation import DeploymentSeen, JobSeen, Observation, Twin
from function_app.runs import ENDS, DatasetVersion, Run, Stage, new_run
from function_app.step_kinds import (
    CollectResults,
    CreateDeployment,
    CreateEndpoint,
    Finish,
    GoLive,
    Move,
    Nothing,
    Register,
    ShiftTraffic,
    SubmitJob,
    Validate,
    Verify,
    Wait,
)

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def a_run(stage: Stage, minutes_ago: float = 0) -> Run:
    run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 100, NOW), NOW)
    if stage != Stage.RECEIVED:
        run.move(stage, "for the test", NOW - timedelta(minutes=minutes_ago))
    return run


def step(stage: Stage, **seen: object) -> object:
    return next_step(a_run(stage), Observation(**seen), NOW)  # type: ignore[arg-type]


def test_the_happy_path_takes_each_step_once() -> None:
    traffic_on_it = {a_run(Stage.LIVE).deployment: 100}
    ready = DeploymentSeen("Succeeded")
    assert step(Stage.RECEIVED) == Validate()
    assert step(Stage.VALIDATED) == SubmitJob()
    assert isinstance(step(Stage.TRAINING, job=JobSeen("Running")), Wait)
    assert step(Stage.TRAINING, job=JobSeen("Completed")) == CollectResults()
    assert step(Stage.APPROVED) == Register()
    assert step(Stage.REGISTERED) == CreateEndpoint()
    assert isinstance(step(Stage.REGISTERED, endpoint_state="Creating"), Wait)
    assert step(Stage.REGISTERED, endpoint_state="Succeeded") == CreateDeployment()
    assert isinstance(step(Stage.DEPLOYING, endpoint_state="Succeeded", deployment=DeploymentSeen("Creating")), Wait)
    assert step(Stage.DEPLOYING, endpoint_state="Succeeded", deployment=ready) == Move(
        Stage.VERIFYING, "the deployment is ready"
    )
    assert step(Stage.VERIFYING) == Verify()
    assert step(Stage.SHIFTING, endpoint_state="Succeeded", deployment=ready) == ShiftTraffic()
    assert step(Stage.SHIFTING, endpoint_state="Succeeded", deployment=ready, traffic=traffic_on_it) == GoLive()


@pytest.mark.parametrize("stage", sorted(ENDS))
def test_an_ended_run_does_nothing(stage: Stage) -> None:
    assert step(stage, job=JobSeen("Running"), overtaken_by="support-000000000000") == Nothing()


def test_a_failed_job_ends_the_run_with_the_logs_last_lines() -> None:
    end = step(Stage.TRAINING, job=JobSeen("Failed", "error: no such base model"))
    assert isinstance(end, Finish)
    assert end.stage == Stage.FAILED
    assert "error: no such base model" in end.reason


def test_a_newer_run_supersedes_one_that_does_not_serve_yet() -> None:
    end = step(Stage.TRAINING, job=JobSeen("Running"), overtaken_by="support-ffffffffffff")
    assert end == Finish(Stage.SUPERSEDED, "overtaken by the newer run support-ffffffffffff")


def test_a_run_that_has_the_traffic_goes_live_although_a_newer_one_comes() -> None:
    run = a_run(Stage.SHIFTING)
    seen = Observation(
        overtaken_by="support-ffffffffffff",
        endpoint_state="Succeeded",
        deployment=DeploymentSeen("Succeeded"),
        traffic={run.deployment: 100},
    )
    assert next_step(run, seen, NOW) == GoLive()


@pytest.mark.parametrize(
    ("twin", "expected"),
    [
        (Twin("support-1", Stage.LIVE, earlier=True), Finish),
        (Twin("support-1", Stage.TRAINING, earlier=False), Finish),
        (Twin("support-1", Stage.VALIDATED, earlier=True), Finish),
        (Twin("support-1", Stage.VALIDATED, earlier=False), Wait),
    ],
)
def test_the_same_file_dropped_twice_is_trained_once(twin: Twin, expected: type) -> None:
    assert isinstance(step(Stage.VALIDATED, twins=(twin,)), expected)


def test_of_two_twins_exactly_one_trains_whoever_looks_first() -> None:
    # Both have validated at the same time and see each other.
    first = step(Stage.VALIDATED, twins=(Twin("support-2", Stage.VALIDATED, earlier=False),))
    second = step(Stage.VALIDATED, twins=(Twin("support-1", Stage.VALIDATED, earlier=True),))
    assert isinstance(first, Wait)
    assert isinstance(second, Finish)


def losses(base: object, tuned: object) -> dict[str, object]:
    return {"eval": {"base": {"loss": base}, "tuned": {"loss": tuned}}}


@pytest.mark.parametrize(
    ("numbers", "stage"),
    [
        (losses(2.0, 1.0), Stage.APPROVED),
        (losses(1.0, 2.0), Stage.REJECTED),
        (losses(1.0, 1.0), Stage.REJECTED),
        (losses(1.0, float("nan")), Stage.REJECTED),
        (losses(None, 1.0), Stage.REJECTED),
        ({}, Stage.REJECTED),
        ({"eval": {"base": None, "tuned": {"loss": 1.0}}}, Stage.REJECTED),
    ],
)
def test_the_gate_lets_only_a_better_model_pass(numbers: dict[str, object], stage: Stage) -> None:
    verdict = judge({"rule": "better_than_base"}, numbers)
    assert isinstance(verdict, (Move, Finish))
    assert verdict.stage == stage


def test_polls_slow_down_with_the_time_already_waited() -> None:
    seen = Observation(endpoint_state="Creating")
    delays = []
    for minutes in (0, 1, 4, 60):
        wait = next_step(a_run(Stage.REGISTERED, minutes), seen, NOW)
        assert isinstance(wait, Wait)
        delays.append(wait.delay.total_seconds())
    assert delays == [1, 6, 24, 30]


STATES = st.sampled_from(["", "Creating", "Updating", "Succeeded", "Failed", "Canceled", "Deleting"])
OBSERVATIONS = st.builds(
    Observation,
    overtaken_by=st.sampled_from(["", "support-ffffffffffff"]),
    twins=st.lists(st.builds(Twin, st.just("support-1"), st.sampled_from(Stage), st.booleans()), max_size=2).map(tuple),
    job=st.none() | st.builds(JobSeen, st.sampled_from(["Queued", "Running", "Completed", "Failed", "Canceled", "?"])),
    endpoint_state=STATES,
    deployment=st.none() | st.builds(DeploymentSeen, STATES.filter(bool)),
    traffic=st.dictionaries(st.sampled_from([a_run(Stage.LIVE).deployment, "r-old"]), st.sampled_from([0, 50, 100])),
)
ORDER = list(Stage)


@given(st.sampled_from(Stage), OBSERVATIONS)
def test_every_pair_gives_a_step_that_never_goes_back(stage: Stage, seen: Observation) -> None:
    run = a_run(stage)
    decided = next_step(run, seen, NOW)
    assert next_step(run, seen, NOW) == decided  # pure
    if isinstance(decided, (Move, Finish)):
        assert ORDER.index(decided.stage) > ORDER.index(stage)
        assert decided.reason
    if isinstance(decided, Finish):
        assert decided.stage in ENDS
    if isinstance(decided, Wait):
        assert timedelta(0) < decided.delay <= timedelta(minutes=5)
