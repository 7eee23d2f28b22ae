"""The state machine of a run: what to do next, given what is there. No I/O."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from .runs import Run, Stage

# Polls start quickly and slow down with the time already waited: a tenth of it, between these bounds, in seconds.
FASTEST_POLL, SLOWEST_POLL = 1.0, 30.0
# A job's end is told by an event; this is for the case that the event is lost, beside the sweep.
JOB_POLL = timedelta(minutes=5)
# How long a stage may wait for Azure. A job has its own time limit, so this is the time in the queue besides.
DEADLINES = {
    Stage.TRAINING: timedelta(days=5),
    Stage.REGISTERED: timedelta(hours=1),
    Stage.DEPLOYING: timedelta(hours=2),
    Stage.SHIFTING: timedelta(hours=1),
}
MAX_TRIES = 3  # of a request that Azure took and that then failed
TWIN_POLL = timedelta(seconds=2)


@dataclass(frozen=True)
class JobSeen:
    """An Azure ML job: its status in Azure's words, and why it failed."""

    status: str
    error: str = ""


@dataclass(frozen=True)
class DeploymentSeen:
    """An online deployment: its provisioning state, and the end of its log when that is Failed."""

    state: str
    error: str = ""


@dataclass(frozen=True)
class Twin:
    """Another run with the same records and recipe, that has not ended badly; ``earlier`` by the time of its drop."""

    id: str
    stage: Stage
    earlier: bool


@dataclass(frozen=True)
class Observation:
    """What is really there in Azure, as far as the run's stage needs to know."""

    overtaken_by: str = ""
    twins: tuple[Twin, ...] = ()
    job: JobSeen | None = None
    endpoint_state: str = ""
    deployment: DeploymentSeen | None = None
    traffic: dict[str, int] = field(default_factory=dict)


class Step:
    """Something to do. What it means is written at each kind."""


@dataclass(frozen=True)
class Validate(Step):
    """Read the file and the recipe, write the report and both splits."""


@dataclass(frozen=True)
class SubmitJob(Step):
    """Submit the training job (PUT under the run's id: a second time changes nothing)."""


@dataclass(frozen=True)
class CollectResults(Step):
    """Read the job's metrics into the record."""


@dataclass(frozen=True)
class Register(Step):
    """Register the job's model under the run's version."""


@dataclass(frozen=True)
class CreateEndpoint(Step):
    """Start creating the model's endpoint."""


@dataclass(frozen=True)
class CreateDeployment(Step):
    """Start creating the challenger's deployment beside the champion's."""


@dataclass(frozen=True)
class Verify(Step):
    """Ask the new deployment, and no other, a few questions."""


@dataclass(frozen=True)
class ShiftTraffic(Step):
    """Send all of the endpoint's traffic to the new deployment."""


@dataclass(frozen=True)
class GoLive(Step):
    """Tell the chat route, and delete the deployments that the new one replaces."""


@dataclass(frozen=True)
class Move(Step):
    """Enter a stage; nothing else to do."""

    stage: Stage
    reason: str


@dataclass(frozen=True)
class Wait(Step):
    """Nothing to do before ``delay`` has passed (or an event comes)."""

    delay: timedelta
    reason: str


@dataclass(frozen=True)
class Finish(Step):
    """End the run. What it has started and nobody uses is stopped afterwards."""

    stage: Stage
    reason: str


@dataclass(frozen=True)
class Nothing(Step):
    """The run has ended."""


def next_step(run: Run, seen: Observation, now: datetime) -> Step:
    """Return the one step that brings ``run`` closer to its end.

    The same ``run`` and ``seen`` give the same step (``now`` only sets how long a Wait is), so events may come twice,
    late, or never.
    """
    if run.ended:
        return Nothing()
    # Once it has the traffic, it goes live: the newer one will replace it in its turn.
    if seen.overtaken_by and seen.traffic.get(run.deployment) != 100:
        return Finish(Stage.SUPERSEDED, f"overtaken by the newer run {seen.overtaken_by}")
    step = _next(run, seen, now)
    deadline = DEADLINES.get(run.stage)
    if isinstance(step, Wait) and deadline and now - run.stage_since > deadline:
        return Finish(Stage.FAILED, f"{step.reason}, and has been for more than {deadline}; it was given up")
    return step


def _next(run: Run, seen: Observation, now: datetime) -> Step:
    match run.stage:
        case Stage.RECEIVED:
            return Validate()
        case Stage.VALIDATED:
            return _validated(seen)
        case Stage.TRAINING:
            return _training(seen)
        case Stage.TRAINED:
            from_champion = run.recipe.get("base_model") == "live"
            against = "the serving model's" if from_champion else "the base's"
            return judge(run.recipe.get("gate", {}).get("rule", "better_than_base"), run.numbers, against)
        case Stage.APPROVED:
            return Register()
        case Stage.REGISTERED:
            return _endpoint(run, seen, now)
        case Stage.DEPLOYING:
            return _deploying(run, seen, now)
        case Stage.VERIFYING:
            return Verify()
        case _:
            return _shifting(run, seen, now)


def _validated(seen: Observation) -> Step:
    """Train, unless the same file was dropped twice: then the run that is ahead, or was dropped first, counts."""
    for twin in seen.twins:
        if twin.stage != Stage.VALIDATED or twin.earlier:
            return Finish(Stage.SUPERSEDED, f"the same records and recipe as run {twin.id}, which is {twin.stage}")
    if seen.twins:  # a later one that has not seen this one yet: it may be about to submit
        return Wait(TWIN_POLL, "another drop of the same file is being decided on")
    return SubmitJob()


def _training(seen: Observation) -> Step:
    match seen.job:
        case None:
            return Finish(Stage.FAILED, "the training job has disappeared from Azure ML")
        case JobSeen(status="Completed"):
            return CollectResults()
        case JobSeen(status="Failed", error=error):
            return Finish(Stage.FAILED, f"the training job failed: {error}" if error else "the training job failed")
        case JobSeen(status="Canceled" | "NotResponding" as status):
            return Finish(Stage.CANCELLED, f"the training job was ended from outside: {status}")
        case JobSeen(status=status):
            return Wait(JOB_POLL, f"the job is {status}")


def judge(rule: str, numbers: dict[str, Any], against: str = "the base's") -> Step:
    """The gate: may the challenger serve? Compares mean held-out losses (nats per token).

    ``against``: whose loss that of the base is, in words: a run may go on from the model that serves.
    """
    held_out = numbers.get("eval") or {}
    base, tuned = ((held_out.get(which) or {}).get("loss") for which in ("base", "tuned"))
    if rule == "always":
        return Move(Stage.APPROVED, "the recipe's gate lets every model pass")
    if base is None or tuned is None:
        return Finish(Stage.REJECTED, "the job reported no held-out loss, so nothing shows that the model is better")
    # Written so that a loss that is not a number is refused too.
    if tuned < base:
        return Move(Stage.APPROVED, f"held-out loss {tuned:.3f}, {against} is {base:.3f}")
    return Finish(Stage.REJECTED, f"held-out loss {tuned:.3f} is not better than {against} {base:.3f}")


def _endpoint(run: Run, seen: Observation, now: datetime) -> Step:
    match seen.endpoint_state:
        case "":
            return CreateEndpoint()
        case "Succeeded":
            return CreateDeployment()
        case "Failed" | "Canceled":
            return _again(run, CreateEndpoint(), "the endpoint could not be created; see it in Azure ML")
        case state:
            return Wait(_poll(run, now), f"the endpoint is {state}")


def _deploying(run: Run, seen: Observation, now: datetime) -> Step:
    match seen.deployment:
        case None:
            return CreateDeployment()
        case DeploymentSeen(state="Succeeded"):
            return Move(Stage.VERIFYING, "the deployment is ready")
        case DeploymentSeen(state="Failed" | "Canceled", error=error):
            return Finish(
                Stage.FAILED, f"the deployment could not start: {error}" if error else "the deployment failed"
            )
        case DeploymentSeen(state=state):
            return Wait(_poll(run, now), f"the deployment is {state}")


def _shifting(run: Run, seen: Observation, now: datetime) -> Step:
    if seen.deployment is None or seen.deployment.state in ("Failed", "Canceled"):
        return Finish(Stage.FAILED, "the deployment was lost before it got any traffic")
    if seen.endpoint_state in ("Failed", "Canceled"):
        return _again(run, ShiftTraffic(), "the traffic could not be shifted; see the endpoint in Azure ML")
    if seen.endpoint_state != "Succeeded":
        return Wait(_poll(run, now), f"the endpoint is {seen.endpoint_state}")
    if seen.traffic.get(run.deployment) != 100:
        return ShiftTraffic()
    return GoLive()


def _again(run: Run, step: Step, reason: str) -> Step:
    """A request that failed in Azure is sent again a few times: an update is how a failed endpoint recovers."""
    return step if run.attempts < MAX_TRIES else Finish(Stage.FAILED, reason)


def _poll(run: Run, now: datetime) -> timedelta:
    waited = (now - run.stage_since).total_seconds()
    return timedelta(seconds=min(SLOWEST_POLL, max(FASTEST_POLL, waited / 10)))
