"""One step of a run: look at what is there, decide by the state machine, do it. Used by advance.py alone."""

import logging
import random
from datetime import timedelta

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

from . import content_safety, engines, intake, release, settle, turn
from .blob_ranges import Replaced
from .dataset import wording
from .errors import StepError, TransientError, UserError
from .lifecycle import deadline, next_step, out_of_time
from .observe import Others, observe
from .recipe import Recipe, stored_recipe
from .runs import Run, RunStore, Stage, utc_now
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

log = logging.getLogger("function_app.steps")

MAX_ATTEMPTS = 8  # of one step that Azure could not do; with the delays below about half an hour
MAX_FAILURES = 60  # of all steps of a run together
RETRY_DELAYS = (2, 5, 15, 60, 120, 300, 600, 900)  # seconds
JITTER = 0.25  # share by which a delay is longer or shorter: runs that failed together do not come back together
LONGEST_RETRY_AFTER = 3600.0  # seconds; what Azure asks for beyond is not waited for in one go
TRANSIENT_STATUS = frozenset({401, 403, 408, 409, 412, 423, 429, 500, 502, 503, 504})


def take(runs: RunStore, run: Run, known: Others | None = None) -> Step:
    """Observe, decide and act once. What goes wrong becomes part of the run; a bug is raised.

    ``known``: for all steps of an invocation the same, so that it lists the model's other runs once.
    """
    try:
        step = next_step(run, observe(runs, run, known), utc_now())
        _act(runs, run, step)
        if isinstance(step, Wait):
            run.attempts = 0  # Azure has answered: only failures in a row count
        return step
    except (Replaced, UserError, StepError, TransientError, AzureError) as error:
        return _not_done(run, error)


def _not_done(run: Run, error: Exception) -> Step:
    """The end that the failure means for the run, or another attempt. An end that it has already stays as it is."""
    if run.ended:
        return _not_now(run, error) if run.attempts < MAX_ATTEMPTS else _forget(run)
    if isinstance(error, Replaced):
        return settle.finish(run, Finish(Stage.SUPERSEDED, "the file was replaced or deleted while it was read"))
    if isinstance(error, UserError):
        return settle.finish(run, Finish(Stage.REJECTED, str(error)))
    if isinstance(error, StepError):
        return settle.finish(run, Finish(Stage.FAILED, str(error)))
    if not _transient(error):
        return settle.finish(run, Finish(Stage.FAILED, f"Azure refused: {_first_line(error)}"))
    return _try_again(run, error)


def _forget(run: Run) -> Forget:
    """Give up what was asked of the run: it cannot be done, or its end does not allow it any more."""
    log.warning("forget run_id=%s stage=%s asked=%s", run.id, run.stage, run.asked.action if run.asked else "")
    run.asked, run.attempts = None, 0
    return Forget()


def _try_again(run: Run, error: Exception) -> Step:
    """Wait, longer from failure to failure; or give up when the step, the stage or the run has used up what it may."""
    run.failures += 1
    wait = _not_now(run, error)
    if run.attempts > MAX_ATTEMPTS:
        return settle.finish(run, Finish(Stage.FAILED, f"gave up after {MAX_ATTEMPTS} attempts: {_first_line(error)}"))
    if run.failures > MAX_FAILURES:
        reason = f"gave up after {MAX_FAILURES} failures of all its steps, the last: {_first_line(error)}"
        return settle.finish(run, Finish(Stage.FAILED, reason))
    if out_of_time(run, utc_now()):
        reason = f"gave up after more than {deadline(run)} at this stage: {_first_line(error)}"
        return settle.finish(run, Finish(Stage.FAILED, reason))
    return wait


def _not_now(run: Run, error: Exception) -> Wait:
    run.attempts += 1
    log.warning("advance run_id=%s stage=%s attempt=%d error=%s", run.id, run.stage, run.attempts, type(error).__name__)
    delay = RETRY_DELAYS[min(run.attempts, len(RETRY_DELAYS)) - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
    return Wait(
        timedelta(seconds=max(delay, _retry_after(error))), f"Azure could not do it this time: {_first_line(error)}"
    )


def _retry_after(error: Exception) -> float:
    """The seconds that Azure asks to wait; 0 when it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return min(max(0.0, float(headers.get("Retry-After", 0))), LONGEST_RETRY_AFTER)  # in this order 0 for nan
    except ValueError:  # a date, which Azure ML does not send; the usual delay does then
        return 0.0


def _act(runs: RunStore, run: Run, step: Step) -> None:
    """Do the step and enter the stage that it leads to. Every action may be repeated."""
    match step:
        case Validate():
            intake.take_in(run, lambda recipe: _measured(runs, run, recipe))
            run.move(Stage.VALIDATED, _taken_in(run), utc_now())
        case SubmitJob():
            recipe = stored_recipe(run.recipe)
            _engine(run).check(run, recipe)
            release.check(run, recipe)
            run.links["job"] = _engine(run).submit(run, recipe)
            run.move(Stage.TRAINING, f"job {run.job} submitted", utc_now())
        case CollectResults():
            run.numbers.update(_engine(run).results(run))
            run.move(Stage.TRAINED, "the training job completed", utc_now())
        case CheckSafety():
            run.numbers["safety"] = content_safety.check(run)
        case Register():
            name, version = release.register(run)
            run.move(Stage.REGISTERED, f"model {name}, version {version}", utc_now())
        case GoLive():
            _go_live(runs, run)
        case Move(stage, reason):
            run.move(stage, reason, utc_now())
        case Finish():
            settle.finish(run, step)
        case Resume(stage, reason):
            _resume(run, stage, reason)
        case Forget():
            _forget(run)
        case Wait() | Nothing():
            return
        case _:
            _release(runs, run, step)
    log.info("step run_id=%s kind=%s stage=%s", run.id, type(step).__name__, run.stage)


def _release(runs: RunStore, run: Run, step: Step) -> None:
    """The steps between the registered model and the live one."""
    match step:
        case TakeTurn():
            run.holds_turn = turn.take(runs, run)
        case CreateEndpoint():
            release.create_endpoint(run)
            run.tries += 1
        case CreateDeployment():
            release.create_deployment(run, stored_recipe(run.recipe))
            if run.stage == Stage.DEPLOYING:  # it was lost; not entered anew, or the stage would never end
                run.tries += 1
            else:
                run.move(Stage.DEPLOYING, release.place_in_words(run), utc_now())
        case Verify():
            run.move(Stage.SHIFTING, release.verify(run), utc_now())
        case ShiftTraffic(share):
            release.shift_traffic(run, share)
            run.tries += 1
            if share != run.share:
                run.share = share
                run.move(Stage.SHIFTING, f"{share} % of the traffic", utc_now())
        case CheckDeployment():
            release.verify(run)
            run.checked = run.share


def _go_live(runs: RunStore, run: Run) -> None:
    """Azure ML is asked first: a run that the chat has been told of must not fail any more."""
    replaced = release.other_deployments(run)
    release.write_live_record(run, lambda: settle.must_be_unmoved(runs, run))
    settle.retire_others(runs, run)
    run.links["chat"] = "/api/v1/chat/completions"
    run.move(Stage.LIVE, f"all traffic goes to {release.place_in_words(run)}", utc_now())
    if replaced:
        settle.keep_replaced(run, utc_now())
    settle.announce(run)


def _resume(run: Run, stage: Stage, reason: str) -> None:
    """As if the run came to the stage for the first time: a new job, a new turn, a whole budget."""
    if stage == Stage.VALIDATED:
        run.generation += 1
    run.holds_turn, run.share, run.checked, run.failures, run.revivals = False, 0, 0, 0, 0
    if run.outbox:  # a person does not wait for a topic
        log.warning("resume run_id=%s unpublished=%s", run.id, ",".join(run.outbox))
    run.outbox = []
    run.move(stage, reason, utc_now())


def _taken_in(run: Run) -> str:
    counts, plan = run.numbers["dataset"], run.numbers.get("estimate")
    sizes = f"{counts['train']:,} records to train on, {counts['eval']:,} held out"
    if not plan:
        return sizes
    told = wording.plan(plan["seconds"], plan.get("cost"))
    return f"{sizes}; {plan['steps']:,} steps{f', {told}' if told else ''}"


def _measured(runs: RunStore, run: Run, recipe: Recipe) -> float | None:
    """Tokens per second of the model's latest training by the same base, method and machine."""
    trained = [other for other in runs.summaries(f"{run.model}-") if other.stage in (Stage.LIVE, Stage.RETIRED)]
    for other in sorted(trained, key=lambda each: each.uploaded_at, reverse=True)[:1]:
        found = runs.get(other.id)
        if found is None:
            continue
        earlier, numbers = stored_recipe(found[0].recipe), found[0].numbers
        if _speed_of(earlier) == _speed_of(recipe):
            speed = (numbers.get("train") or {}).get("tokens_per_second")
            return float(speed) if isinstance(speed, int | float) else None
    return None


def _speed_of(recipe: Recipe) -> tuple[object, ...]:
    """What decides how fast a training is."""
    compute = recipe.compute
    machines = (compute.instance_type, compute.cluster, compute.instance_count)
    return (recipe.base_model, recipe.method, recipe.engine, *machines)


def _engine(run: Run) -> engines.Engine:
    return engines.engine(stored_recipe(run.recipe))


def _transient(error: Exception) -> bool:
    # No token, or a role assignment that has not reached every server yet: both pass, or need a person and time.
    if isinstance(error, ClientAuthenticationError):
        return True
    if isinstance(error, HttpResponseError):
        return error.status_code is None or error.status_code in TRANSIENT_STATUS
    return isinstance(error, (TransientError, ServiceRequestError, ServiceResponseError))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
