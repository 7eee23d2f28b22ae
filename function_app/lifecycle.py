"""The state machine of a run: what to do next, given what is there. No I/O."""

from datetime import datetime, timedelta

from .gate import judge
from .observation import DeploymentSeen, JobSeen, Observation
from .recipe import stored_recipe
from .runs import Run, Stage
from .step_kinds import (
    CheckDeployment,
    CheckSafety,
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
    Step,
    SubmitJob,
    TakeTurn,
    Validate,
    Verify,
    Wait,
)

# Polls start quickly and slow down with the time already waited: a tenth of it, between these bounds, in seconds.
FASTEST_POLL, SLOWEST_POLL = 1.0, 30.0
# A job's end is told by an event; this is for the case that the event is lost, beside the sweep.
JOB_POLL = timedelta(minutes=5)
# The run that ends wakes those that wait for its turn; this is for the case that its message is lost.
TURN_POLL = timedelta(minutes=1)
# How often the deployment is looked at while it has a share of the traffic.
SHARE_POLL = timedelta(minutes=1)
# How long a stage may last, waiting for Azure or failing at it; to those of training and deploying the recipe's own
# limits are added, see deadline(). A run that is registered may wait for another's release.
DEADLINES = {
    Stage.RECEIVED: timedelta(days=1),
    Stage.VALIDATED: timedelta(days=1),
    Stage.TRAINING: timedelta(days=5),
    Stage.TRAINED: timedelta(days=30),
    Stage.APPROVED: timedelta(days=1),
    Stage.REGISTERED: timedelta(days=1),
    Stage.DEPLOYING: timedelta(hours=1.5),
    Stage.VERIFYING: timedelta(hours=1),
    Stage.SHIFTING: timedelta(hours=2),
}
MAX_TRIES = 3  # of a request that Azure took and that then failed
TRY_AGAIN = timedelta(seconds=10)  # between them: what Azure shows may be older than what it took
TWIN_POLL = timedelta(seconds=2)


def next_step(run: Run, seen: Observation, now: datetime) -> Step:
    """Return the one step that brings ``run`` closer to its end.

    The same ``run`` and ``seen`` give the same step (``now`` only decides whether a wait is over), so events may come
    twice, late, or never.
    """
    if run.ended:
        return _ended(run, seen)
    if run.asked and run.asked.action == "cancel" and run.share < 100:
        return Finish(Stage.CANCELLED, f"cancelled {run.asked.in_words}")
    # With all the traffic the model is as good as live: the chat may have been told, and the champion's run be retired.
    if run.asked and not (run.stage == Stage.TRAINED and run.asked.action in ("approve", "reject")):
        return Forget()
    # Once it has some of the traffic it goes on: the newer one will replace it in its turn.
    if seen.overtaken_by and not run.share and not seen.traffic.get(run.deployment):
        return Finish(Stage.SUPERSEDED, f"overtaken by the newer run {seen.overtaken_by}")
    step = _next(run, seen, now)
    if isinstance(step, Wait) and out_of_time(run, now):
        return Finish(Stage.FAILED, f"{step.reason}, and has been for more than {deadline(run)}; it was given up")
    return step


def deadline(run: Run) -> timedelta | None:
    """How long the run may be in its stage; None for an end."""
    match run.stage:
        case Stage.DEPLOYING:
            startup = stored_recipe(run.recipe).serving.startup_minutes
            return DEADLINES[Stage.DEPLOYING] + timedelta(minutes=startup)
        case Stage.TRAINING:  # the job's own limit, and the time in the queue besides
            longest = stored_recipe(run.recipe).compute.max_hours
            return DEADLINES[Stage.TRAINING] + timedelta(hours=longest)
        case stage:
            return DEADLINES.get(stage)


def out_of_time(run: Run, now: datetime) -> bool:
    """Whether the run has been in its stage for longer than it may."""
    limit = deadline(run)
    return limit is not None and now - run.stage_since > limit


def _ended(run: Run, seen: Observation) -> Step:
    """An ended run stays as it is, unless a person asks for something that its end allows."""
    if run.asked is None:
        return Nothing()
    if run.asked.action == "retire" and run.stage == Stage.LIVE and not seen.used_again:
        return Finish(Stage.RETIRED, f"retired {run.asked.in_words}")
    if run.asked.action != "retry" or run.stage not in (Stage.FAILED, Stage.CANCELLED):
        return Forget()
    if run.cleanup:
        return Nothing()  # what it has left is deleted first
    return Resume(_resumed_at(run, seen), f"taken up again {run.asked.in_words}")


def _resumed_at(run: Run, seen: Observation) -> Stage:
    stopped_at = next(event.stage for event in reversed(run.history) if event.stage in DEADLINES)
    if stopped_at == Stage.TRAINING and not (seen.job and seen.job.status == "Completed"):
        return Stage.VALIDATED  # a job that has ended badly cannot go on: another one is submitted
    if stopped_at in (Stage.DEPLOYING, Stage.VERIFYING, Stage.SHIFTING):
        return Stage.REGISTERED  # its deployment was deleted
    return stopped_at


def _next(run: Run, seen: Observation, now: datetime) -> Step:
    match run.stage:
        case Stage.RECEIVED:
            return Validate()
        case Stage.VALIDATED:
            return _validated(seen)
        case Stage.TRAINING:
            return _training(seen)
        case Stage.TRAINED:
            if seen.safety and "safety" not in run.numbers:
                return CheckSafety()
            from_champion = run.recipe.get("base_model") == "live"
            against = "the serving model's" if from_champion else "the base's"
            return judge(run.recipe.get("gate") or {}, run.numbers, run.asked, against)
        case Stage.APPROVED:
            return Register()
        case Stage.REGISTERED:
            return _registered(run, seen, now)
        case Stage.DEPLOYING:
            return _deploying(run, seen, now)
        case Stage.VERIFYING:
            return _verifying(seen)
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


def _registered(run: Run, seen: Observation, now: datetime) -> Step:
    """One release for a model at a time, so the turn comes first; then the endpoint, then the deployment."""
    if seen.releasing:
        return Wait(TURN_POLL, f"the release of {seen.releasing} is under way")
    if not run.holds_turn:
        return TakeTurn()
    match seen.endpoint_state:
        case "":
            return _again(
                run, now, CreateEndpoint(), "the endpoint does not appear, although Azure ML was asked for it"
            )
        case "Succeeded":
            return CreateDeployment()
        case "Failed" | "Canceled":
            return _again(run, now, CreateEndpoint(), "the endpoint could not be created; see it in Azure ML")
        case state:
            return Wait(_poll(run, now), f"the endpoint is {state}")


def _deploying(run: Run, seen: Observation, now: datetime) -> Step:
    match seen.deployment:
        case None:
            return _again(run, now, CreateDeployment(), "the deployment disappears again and again from Azure ML")
        case DeploymentSeen(state="Succeeded"):
            return Move(Stage.VERIFYING, "the deployment is ready")
        case DeploymentSeen(state="Failed" | "Canceled", error=error):
            return Finish(
                Stage.FAILED, f"the deployment could not start: {error}" if error else "the deployment failed"
            )
        case DeploymentSeen(state=state):
            return Wait(_poll(run, now), f"the deployment is {state}")


def _verifying(seen: Observation) -> Step:
    """Ask it, unless it is gone: then it would be asked for half an hour."""
    match seen.deployment:
        case None:
            return Finish(Stage.FAILED, "the deployment has disappeared from Azure ML before it was asked anything")
        case DeploymentSeen(state="Failed" | "Canceled"):
            # Without the end of its log: it may have been asked by now, and what it was asked is in no record.
            return Finish(Stage.FAILED, "the deployment failed after its start; see its log in Azure ML")
        case _:
            return Verify()


def _shifting(run: Run, seen: Observation, now: datetime) -> Step:
    """Share by share: shift, wait, ask the deployment again; at 100 % the model is live."""
    if seen.deployment is None or seen.deployment.state in ("Failed", "Canceled"):
        told = f"the deployment was lost when it had {run.share} % of the traffic"
        back = "; the model that served before gets all requests again" if seen.champion else ""
        return Finish(Stage.FAILED, told + back)
    # Nothing is asked for yet, or what was is found good. Whatever the traffic is: the next share may have been asked
    # for already by one that could not save it.
    good = run.share < 100 and run.checked == run.share
    # Without a champion nobody would answer the other requests.
    share = run.share if seen.champion and not good else _next_share(run, seen)
    if seen.endpoint_state in ("Failed", "Canceled"):
        return _again(run, now, ShiftTraffic(share), "the traffic could not be shifted; see the endpoint in Azure ML")
    if seen.endpoint_state != "Succeeded":
        return Wait(_poll(run, now), f"the endpoint is {seen.endpoint_state}")
    if good:
        return ShiftTraffic(share)
    if seen.traffic.get(run.deployment, 0) != run.share:
        return _again(run, now, ShiftTraffic(share), f"the deployment does not get {share} % of the endpoint's traffic")
    if run.share == 100:
        return GoLive()
    left = run.stage_since + timedelta(minutes=stored_recipe(run.recipe).release.step_minutes) - now
    if left > timedelta(0):
        return Wait(min(left, SHARE_POLL), f"it has {run.share} % of the traffic")
    return CheckDeployment()


def _next_share(run: Run, seen: Observation) -> int:
    """All at once where nothing else serves, and on the way back to a model that has served before."""
    if not seen.champion or run.release_of:
        return 100
    steps = stored_recipe(run.recipe).release.steps
    return next((share for share in steps if share > run.share), 100)


def _again(run: Run, now: datetime, step: Step, reason: str) -> Step:
    """A request that failed in Azure is sent again a few times: an update is how a failed endpoint recovers."""
    left = run.stage_since + run.tries * TRY_AGAIN - now
    if left > timedelta(0):
        return Wait(left, reason)
    return step if run.tries < MAX_TRIES else Finish(Stage.FAILED, reason)


def _poll(run: Run, now: datetime) -> timedelta:
    waited = (now - run.stage_since).total_seconds()
    return timedelta(seconds=min(SLOWEST_POLL, max(FASTEST_POLL, waited / 10)))
