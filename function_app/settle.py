"""What is left to do when a run has ended: publish its outcome, delete what nobody uses, or what it has replaced."""

import logging
from datetime import datetime, timedelta
from typing import Literal

from azure.core.exceptions import AzureError

from . import engines, outcomes, release, turn
from .errors import StepError, TransientError
from .recipe import stored_recipe
from .runs import Conflict, Run, RunStore, Stage, Summary, utc_now
from .step_kinds import Finish, Wait

log = logging.getLogger("function_app.settle")

# A job, a deployment or an endpoint takes a while to stop. Looks become rarer with the time already waited.
SOONEST_LOOK, LATEST_LOOK = timedelta(seconds=3), timedelta(minutes=15)
ALARM_AFTER = timedelta(hours=1)
SAVES = 5  # of another run's record, before it is left to the next attempt
STOPPING = {
    "job": "its job is being stopped",
    "deployment": "its deployment is being deleted",
    "replaced": "the deployments that it has replaced are being deleted",
    "endpoint": "its endpoint is being deleted",
}
RELEASING = frozenset({Stage.REGISTERED, Stage.DEPLOYING, Stage.VERIFYING, Stage.SHIFTING})
NEEDING = RELEASING | {Stage.APPROVED, Stage.LIVE}  # a deployment: a rollback has its place from its beginning


def finish(run: Run, step: Finish) -> Finish:
    """Enter an end, and note what is left that costs money or gets traffic.

    Nothing is stopped yet: only once the record is saved is it sure that no other invocation has moved the run on.
    """
    run.cleanup, run.cleanup_at = left_at(run, run.stage), None
    run.move(step.stage, step.reason, utc_now())
    announce(run)
    log.info("end run_id=%s stage=%s", run.id, run.stage)
    return step


def left_at(run: Run, stage: Stage) -> Literal["", "job", "deployment", "endpoint"]:
    """What the run may have started when it ends at the stage.

    Before it has the turn that is nothing, and a rollback's place is still another run's deployment. Of a deployment
    that would have been its own it is looked whether it is there: the record may be that of a second attempt.
    """
    if stage in (Stage.VALIDATED, Stage.TRAINING):
        return "job"
    if stage in RELEASING and (run.holds_turn or not run.place):
        return "deployment"
    return "endpoint" if stage == Stage.LIVE else ""


def announce(run: Run) -> None:
    """Have the outcome published, when there is a topic for it."""
    kind = outcomes.kind(run)
    if kind and kind not in run.outbox and outcomes.wanted():
        run.outbox = [*run.outbox, kind]


def must_be_unmoved(runs: RunStore, run: Run) -> None:
    """Raises Conflict when another invocation has moved the run on: by now a later run may be live."""
    found = runs.get(run.id)
    if found is None or found[0].history != run.history:
        raise Conflict(run.id)


def retire_others(runs: RunStore, run: Run) -> None:
    """End the runs whose model served before. Their deployments go with the bake time of ``run``."""
    # By the records, not by the deployments: after a crash in between, these may be gone already.
    for other in _of_model(runs, run):
        if other.stage == Stage.LIVE:
            _retire(runs, run, other.id)


def _retire(runs: RunStore, run: Run, id: str) -> None:
    for _ in range(SAVES):
        found = runs.get(id)
        if found is None or found[0].stage != Stage.LIVE:
            return
        must_be_unmoved(runs, run)  # looked at after the other: as long as this run is not live, no later one can be
        other, etag = found
        other.cleanup, other.cleanup_at = "", None
        other.move(Stage.RETIRED, f"replaced by {run.id}", utc_now())
        try:
            runs.save(other, etag)
            return
        except Conflict:  # its own cleaning up, or a person: this run must not be left in between for that
            continue
    raise TransientError(f"the record of {id} changes all the time; looking again")


def keep_replaced(run: Run, now: datetime) -> None:
    """Note that the replaced deployments are to be deleted after the bake time."""
    minutes = stored_recipe(run.recipe).release.bake_minutes
    run.cleanup, run.cleanup_at = "replaced", now + timedelta(minutes=minutes)


def settle(runs: RunStore, run: Run, now: datetime) -> Wait | None:
    """Do what can be done now; return the wait for the rest, None when nothing is left. To be repeated until then."""
    waits: list[Wait] = []
    if run.outbox:
        if outcomes.publish(run):
            run.outbox = []
        else:
            waits.append(Wait(_look_again(run.stage_since, now), "the outcome could not be published"))
    if run.cleanup and run.cleanup_at and run.cleanup_at > now:
        waits.append(Wait(run.cleanup_at - now, "the replaced model is kept for the bake time"))
    elif run.cleanup:
        if clean_up(runs, run):
            run.cleanup, run.cleanup_at = "", None
        else:
            since = run.cleanup_at or run.stage_since
            waits.append(Wait(_look_again(since, now), STOPPING[run.cleanup]))
    return min(waits, key=lambda wait: wait.delay) if waits else None


def clean_up(runs: RunStore, run: Run) -> bool:
    """Delete what an ended run has left; True once Azure shows that nothing is. To be repeated until then."""
    try:
        match run.cleanup:
            case "job":
                done = engines.engine(stored_recipe(run.recipe)).stopped(run)
            case "deployment":
                done = _taken_over(runs, run) or release.discarded(run)
            case "replaced":
                done = _replaced(runs, run)
            case _:
                # Its endpoint must not be deleted under another run that is about to deploy on it.
                done = turn.take(runs, run) and release.retired(run)
    except (AzureError, TransientError, StepError) as error:
        # The model's next release waits for this one's end: what does not pass by itself needs a person.
        level = logging.ERROR if utc_now() - (run.cleanup_at or run.stage_since) > ALARM_AFTER else logging.WARNING
        log.log(level, "clean_up run_id=%s what=%s error=%s", run.id, run.cleanup, str(error).partition("\n")[0][:300])
        return False
    log.info("clean_up run_id=%s what=%s done=%s", run.id, run.cleanup, done)
    return done


def waiting_for_turn(runs: RunStore, run: Run) -> list[str]:
    """The runs that may go on now that ``run`` leaves the endpoint alone."""
    if not run.holds_turn or run.cleanup in ("deployment", "endpoint"):
        return []
    return [other.id for other in _of_model(runs, run) if other.stage == Stage.REGISTERED]


def _taken_over(runs: RunStore, run: Run) -> bool:
    """Whether a later rollback serves, or is about to, from the deployment that this one was to serve from."""
    if not run.place:
        return False
    found = [runs.get(other.id) for other in _of_model(runs, run) if other.stage in NEEDING]
    return any(each is not None and each[0].deployment == run.deployment for each in found)


def _replaced(runs: RunStore, run: Run) -> bool:
    """Delete the endpoint's other deployments, but none that another run is about to release.

    While the new deployment is not well, the old ones are kept: going back to them takes a moment.
    """
    if run.stage != Stage.LIVE:
        return True  # the run that serves now deletes this one's deployment with the others
    others = release.other_deployments(run)
    if not others:
        return True
    seen = release.observe_deployment(run)
    if seen is None or seen.state != "Succeeded":
        log.error("clean_up run_id=%s state=%s: the replaced are kept", run.id, seen.state if seen else "gone")
        return False
    needed = _needed(runs, run)
    left = {place: id for place, id in others.items() if place.name not in needed and id not in needed}
    for place in left:
        release.delete_deployment(run, place)
    return not left


def _needed(runs: RunStore, run: Run) -> set[str]:
    """The ids and the deployments of this run and of the model's runs that are under way, that delete what they have
    made themselves, or that have gone live while this one was looking."""
    names = {run.id, run.deployment}
    for other in _of_model(runs, run):
        found = runs.get(other.id) if other.stage in NEEDING or other.unsettled else None
        if found and (not found[0].ended or found[0].stage == Stage.LIVE or found[0].cleanup == "deployment"):
            names |= {found[0].id, found[0].deployment}
    return names


def _of_model(runs: RunStore, run: Run) -> list[Summary]:
    return [other for other in runs.summaries(f"{run.model}-") if other.model == run.model and other.id != run.id]


def _look_again(since: datetime, now: datetime) -> timedelta:
    return min(LATEST_LOOK, max(SOONEST_LOOK, (now - since) / 10))
