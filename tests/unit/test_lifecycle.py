"""The state machine's single steps; test_machine.py walks through all of them."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from function_app.lifecycle import deadline, next_step
from function_app.observation import DeploymentSeen, JobSeen, Observation, Twin
from function_app.runs import ENDS, Ask, DatasetVersion, Run, Stage, new_run
from function_app.step_kinds import (
    CheckDeployment,
    CollectResults,
    CreateDeployment,
    CreateEndpoint,
    Finish,
    Forget,
    GoLive,
    Move,
    Nothing,
    Register,
    Resume,
    ShiftTraffic,
    SubmitJob,
    TakeTurn,
    Validate,
    Verify,
    Wait,
)

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
READY = DeploymentSeen("Succeeded")


def a_run(stage: Stage, minutes_ago: float = 0, **more: object) -> Run:
    run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 100, NOW), NOW)
    if stage != Stage.RECEIVED:
        run.move(stage, "for the test", NOW - timedelta(minutes=minutes_ago))
    return msgspec.structs.replace(run, **more)


def step(stage: Stage, run: Run | None = None, **seen: object) -> object:
    return next_step(run or a_run(stage), Observation(**seen), NOW)  # type: ignore[arg-type]


def test_the_happy_path_takes_each_step_once() -> None:
    traffic_on_it = {a_run(Stage.LIVE).deployment: 100}
    ready = DeploymentSeen("Succeeded")
    assert step(Stage.RECEIVED) == Validate()
    assert step(Stage.VALIDATED) == SubmitJob()
    assert isinstance(step(Stage.TRAINING, job=JobSeen("Running")), Wait)
    assert step(Stage.TRAINING, job=JobSeen("Completed")) == CollectResults()
    assert step(Stage.APPROVED) == Register()
    assert step(Stage.REGISTERED) == TakeTurn()
    turn = a_run(Stage.REGISTERED, holds_turn=True)
    assert step(Stage.REGISTERED, turn) == CreateEndpoint()
    assert isinstance(step(Stage.REGISTERED, turn, endpoint_state="Creating"), Wait)
    assert step(Stage.REGISTERED, turn, endpoint_state="Succeeded") == CreateDeployment()
    assert isinstance(step(Stage.DEPLOYING, endpoint_state="Succeeded", deployment=DeploymentSeen("Creating")), Wait)
    assert step(Stage.DEPLOYING, endpoint_state="Succeeded", deployment=ready) == Move(
        Stage.VERIFYING, "the deployment is ready"
    )
    assert step(Stage.VERIFYING, deployment=ready) == Verify()
    assert step(Stage.SHIFTING, endpoint_state="Succeeded", deployment=ready) == ShiftTraffic(100)
    all_of_it = a_run(Stage.SHIFTING, share=100)
    seen = Observation(endpoint_state="Succeeded", deployment=ready, traffic=traffic_on_it)
    assert next_step(all_of_it, seen, NOW) == GoLive()


@pytest.mark.parametrize(
    ("share", "checked", "traffic", "minutes", "expected"),
    [
        (0, 0, 0, 0, ShiftTraffic(10)),
        (0, 0, 10, 0, ShiftTraffic(10)),  # asked for by one that could not save it
        (10, 0, 10, 0.5, Wait(timedelta(seconds=30), "it has 10 % of the traffic")),
        (10, 0, 10, 1, CheckDeployment()),
        (10, 10, 10, 1, ShiftTraffic(50)),
        (10, 10, 50, 1, ShiftTraffic(50)),  # and not back to 10
        (50, 10, 10, 1, ShiftTraffic(50)),  # Azure has lost it
        (50, 50, 50, 1, ShiftTraffic(100)),
        (100, 50, 100, 0, GoLive()),
    ],
)
def test_the_traffic_is_shifted_share_by_share(
    share: int, checked: int, traffic: int, minutes: float, expected: object
) -> None:
    run = a_run(Stage.SHIFTING, minutes, share=share, checked=checked)
    seen = Observation(
        endpoint_state="Succeeded", deployment=READY, champion="r-old",
        traffic={run.deployment: traffic, "r-old": 100 - traffic},
    )  # fmt: skip
    assert next_step(run, seen, NOW) == expected


@pytest.mark.parametrize(
    ("deployment", "said"),
    [
        (None, "has disappeared from Azure ML before it was asked"),
        (DeploymentSeen("Failed", "a question"), "failed after its start; see its log in Azure ML"),
        (DeploymentSeen("Canceled"), "failed after its start; see its log in Azure ML"),
    ],
)
def test_a_deployment_that_is_lost_is_not_asked_for_half_an_hour(deployment: DeploymentSeen | None, said: str) -> None:
    taken = step(Stage.VERIFYING, deployment=deployment)
    assert isinstance(taken, Finish)
    assert taken.stage == Stage.FAILED
    assert said in taken.reason
    assert "a question" not in taken.reason
    assert step(Stage.VERIFYING, deployment=DeploymentSeen("Updating")) == Verify()  # it may answer all the same


def test_a_rollback_and_a_release_without_a_champion_get_all_the_traffic_at_once() -> None:
    seen = Observation(endpoint_state="Succeeded", deployment=READY, champion="r-old")
    assert next_step(a_run(Stage.SHIFTING, release_of="support-1"), seen, NOW) == ShiftTraffic(100)
    alone = Observation(endpoint_state="Succeeded", deployment=READY)
    assert next_step(a_run(Stage.SHIFTING), alone, NOW) == ShiftTraffic(100)
    # The champion has gone when the new model had a tenth: the other nine would be answered by nobody.
    assert next_step(a_run(Stage.SHIFTING, share=10), alone, NOW) == ShiftTraffic(100)


def test_a_request_is_sent_again_three_times_and_not_at_once() -> None:
    lost = Observation(endpoint_state="Succeeded", deployment=READY, champion="r-old", traffic={"r-old": 100})
    taken = []
    for seconds in range(60):
        run = a_run(Stage.SHIFTING, seconds / 60, share=10, tries=sum(isinstance(each, ShiftTraffic) for each in taken))
        taken.append(next_step(run, lost, NOW))
    times = [seconds for seconds, each in enumerate(taken) if isinstance(each, ShiftTraffic)]
    assert times == [0, 10, 20]
    ended = [each for each in taken if isinstance(each, Finish)]
    assert len(ended) == 30
    assert "does not get 10 % of the endpoint's traffic" in ended[0].reason


@pytest.mark.parametrize(
    ("stopped_at", "job", "resumed_at"),
    [
        (Stage.RECEIVED, "", Stage.RECEIVED),
        (Stage.VALIDATED, "", Stage.VALIDATED),
        (Stage.TRAINING, "Failed", Stage.VALIDATED),
        (Stage.TRAINING, "Completed", Stage.TRAINING),
        (Stage.TRAINED, "", Stage.TRAINED),
        (Stage.APPROVED, "", Stage.APPROVED),
        (Stage.SHIFTING, "", Stage.REGISTERED),
    ],
)
def test_a_failed_run_is_taken_up_where_it_stopped(stopped_at: Stage, job: str, resumed_at: Stage) -> None:
    run = a_run(stopped_at)
    run.move(Stage.FAILED, "for the test", NOW)
    run.asked = Ask("retry", "alice", NOW, "the quota is raised")
    seen = Observation(job=JobSeen(job) if job else None)
    assert next_step(run, seen, NOW) == Resume(resumed_at, "taken up again by alice: the quota is raised")
    run.cleanup = "job"
    assert next_step(run, seen, NOW) == Nothing()  # what it has left is deleted first


def test_the_deadlines_know_the_recipes_own_limits() -> None:
    long = {"compute": {"max_hours": 200.0}, "serving": {"startup_minutes": 300}}
    assert deadline(a_run(Stage.TRAINING, recipe=long)) == timedelta(days=5, hours=200)
    assert deadline(a_run(Stage.TRAINING)) == timedelta(days=5, hours=12)  # a record without a recipe's sections
    assert deadline(a_run(Stage.DEPLOYING, recipe=long)) == timedelta(hours=6.5)
    assert deadline(a_run(Stage.LIVE)) is None


def test_what_was_asked_too_late_or_too_early_is_forgotten() -> None:
    for stage, action in ((Stage.TRAINING, "approve"), (Stage.TRAINED, "retire"), (Stage.LIVE, "retry")):
        run = a_run(stage, asked=Ask(action, "alice", NOW))  # type: ignore[arg-type]
        assert next_step(run, Observation(job=JobSeen("Running")), NOW) == Forget()
    run = a_run(Stage.SHIFTING, share=100, asked=Ask("cancel", "alice", NOW))
    assert next_step(run, Observation(), NOW) == Forget()


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
    run = a_run(Stage.SHIFTING, share=100)
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


def test_polls_slow_down_with_the_time_already_waited() -> None:
    seen = Observation(endpoint_state="Creating")
    delays = []
    for minutes in (0, 1, 4, 60):
        wait = next_step(a_run(Stage.REGISTERED, minutes, holds_turn=True), seen, NOW)
        assert isinstance(wait, Wait)
        delays.append(wait.delay.total_seconds())
    assert delays == [1, 6, 24, 30]
