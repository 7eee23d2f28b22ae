"""One step of a run: look at what is there, decide by the state machine, do it. Used by advance.py alone."""

import logging
from datetime import timedelta

import msgspec
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

from . import engines, intake, release
from .blob_ranges import Replaced
from .dataset import wording
from .errors import StepError, TransientError, UserError
from .lifecycle import (
    CollectResults,
    CreateDeployment,
    CreateEndpoint,
    Finish,
    GoLive,
    Move,
    Nothing,
    Observation,
    Register,
    ShiftTraffic,
    Step,
    SubmitJob,
    Twin,
    Validate,
    Verify,
    Wait,
    next_step,
)
from .recipe import Recipe
from .runs import Run, RunStore, Stage, Summary, utc_now

log = logging.getLogger("function_app.steps")

MAX_ATTEMPTS = 8  # of one step that Azure could not do; with the delays below about half an hour
RETRY_DELAYS = (2, 5, 15, 60, 120, 300, 600, 900)  # seconds
# Stages of a run that counts: its data is good, and it has not ended badly.
COUNTING = frozenset(set(Stage) - {Stage.RECEIVED, Stage.REJECTED, Stage.FAILED, Stage.CANCELLED, Stage.SUPERSEDED})
TRANSIENT_STATUS = frozenset({401, 403, 408, 409, 412, 423, 429, 500, 502, 503, 504})


def take(runs: RunStore, run: Run) -> Step:
    """Observe, decide and act once. What goes wrong becomes part of the run; a bug is raised."""
    try:
        step = next_step(run, observe(runs, run), utc_now())
        _act(runs, run, step)
        if isinstance(step, Wait):
            run.attempts = 0  # Azure has answered: only failures in a row count
        return step
    except Replaced:
        return finish(run, Finish(Stage.SUPERSEDED, "the file was replaced or deleted while it was read"))
    except UserError as error:
        return finish(run, Finish(Stage.REJECTED, str(error)))
    except StepError as error:
        return finish(run, Finish(Stage.FAILED, str(error)))
    except (TransientError, AzureError) as error:
        if not _transient(error):
            return finish(run, Finish(Stage.FAILED, f"Azure refused: {_first_line(error)}"))
        run.attempts += 1
        log.warning(
            "advance run_id=%s stage=%s attempt=%d error=%s", run.id, run.stage, run.attempts, type(error).__name__
        )
        if run.attempts > MAX_ATTEMPTS:
            return finish(run, Finish(Stage.FAILED, f"gave up after {MAX_ATTEMPTS} attempts: {_first_line(error)}"))
        return Wait(timedelta(seconds=RETRY_DELAYS[run.attempts - 1]), "Azure could not do it this time")


def observe(runs: RunStore, run: Run) -> Observation:
    """Look at what the run's stage depends on, and at nothing else."""
    if run.stage in (Stage.RECEIVED, Stage.TRAINED):
        return Observation()
    others = [
        other for other in runs.summaries(f"{run.model}-")
        if other.model == run.model and other.id != run.id and other.stage in COUNTING
    ]  # fmt: skip
    overtaken_by = _overtaken_by(run, others)
    match run.stage:
        case Stage.VALIDATED:
            return Observation(overtaken_by, _twins(run, others))
        case Stage.APPROVED | Stage.VERIFYING:
            return Observation(overtaken_by)
        case Stage.TRAINING:
            return Observation(overtaken_by, job=_engine(run).observe(run))
        case _:
            state, traffic = release.observe_endpoint(run)
            deployment = release.observe_deployment(run) if state and run.stage != Stage.REGISTERED else None
            return Observation(overtaken_by, endpoint_state=state, deployment=deployment, traffic=traffic)


def _overtaken_by(run: Run, others: list[Summary]) -> str:
    """The newest run whose data came later; the same file dropped again overtakes nothing."""
    newer = [
        (other.uploaded_at, other.id)
        for other in others
        if other.uploaded_at > run.dataset.uploaded_at and other.fingerprint != run.fingerprint
    ]
    return max(newer)[1] if newer else ""


def _twins(run: Run, others: list[Summary]) -> tuple[Twin, ...]:
    """The runs of the same records and recipe, but for those whose model no longer serves."""
    mine = (run.dataset.uploaded_at, run.id)
    return tuple(
        Twin(other.id, other.stage, (other.uploaded_at, other.id) < mine)
        for other in others
        if other.fingerprint == run.fingerprint and other.stage != Stage.RETIRED
    )


def _act(runs: RunStore, run: Run, step: Step) -> None:
    """Do the step and enter the stage that it leads to. Every action may be repeated."""
    match step:
        case Validate():
            intake.take_in(run, lambda recipe: _measured(runs, run, recipe))
            run.move(Stage.VALIDATED, _taken_in(run), utc_now())
        case SubmitJob():
            recipe = _recipe(run)
            _engine(run).check(run, recipe)
            run.links["job"] = _engine(run).submit(run, recipe)
            run.move(Stage.TRAINING, f"job {run.id} submitted", utc_now())
        case CollectResults():
            run.numbers.update(_engine(run).results(run))
            run.move(Stage.TRAINED, "the training job completed", utc_now())
        case Register():
            name, version = release.register(run)
            run.move(Stage.REGISTERED, f"model {name}, version {version}", utc_now())
        case CreateEndpoint():
            run.attempts += 1
            release.create_endpoint(run)
        case CreateDeployment():
            release.create_deployment(run, _recipe(run))
            run.move(Stage.DEPLOYING, release.place_in_words(run), utc_now())
        case Verify():
            run.move(Stage.SHIFTING, release.verify(run), utc_now())
        case ShiftTraffic():
            run.attempts += 1
            release.shift_traffic(run)
        case GoLive():
            release.write_live_record(run)
            _replace_others(runs, run)
            run.links["chat"] = "/api/v1/chat/completions"
            run.move(Stage.LIVE, f"all traffic goes to {release.place_in_words(run)}", utc_now())
        case Move(stage, reason):
            run.move(stage, reason, utc_now())
        case Finish():
            finish(run, step)
        case Wait() | Nothing():
            return
    log.info("step run_id=%s kind=%s stage=%s", run.id, type(step).__name__, run.stage)


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
        earlier, numbers = _recipe(found[0]), found[0].numbers
        if _speed_of(earlier) == _speed_of(recipe):
            speed = (numbers.get("train") or {}).get("tokens_per_second")
            return float(speed) if isinstance(speed, int | float) else None
    return None


def _speed_of(recipe: Recipe) -> tuple[object, ...]:
    """What decides how fast a training is."""
    compute = recipe.compute
    machines = (compute.instance_type, compute.cluster, compute.instance_count)
    return (recipe.base_model, recipe.method, recipe.engine, *machines)


def finish(run: Run, step: Finish) -> Finish:
    """Enter an end, and note what is left that costs money: the job, or a deployment that got no traffic.

    Nothing is stopped yet: only once the record is saved is it sure that no other invocation has moved the run on.
    """
    if run.stage in (Stage.VALIDATED, Stage.TRAINING):
        run.cleanup = "job"
    elif run.stage in (Stage.REGISTERED, Stage.DEPLOYING, Stage.VERIFYING, Stage.SHIFTING):
        run.cleanup = "deployment"
    run.move(step.stage, step.reason, utc_now())
    log.info("end run_id=%s stage=%s", run.id, run.stage)
    return step


def clean_up(run: Run) -> bool:
    """Stop what an ended run has left; True once Azure shows that nothing is. To be repeated until then."""
    try:
        done = _engine(run).stopped(run) if run.cleanup == "job" else release.discarded(run)
    except AzureError as error:
        log.warning("clean_up run_id=%s what=%s error=%s", run.id, run.cleanup, _first_line(error))
        return False
    log.info("clean_up run_id=%s what=%s done=%s", run.id, run.cleanup, done)
    return done


def _replace_others(runs: RunStore, run: Run) -> None:
    """Delete the endpoint's other deployments, but not a challenger that is still on its way; retire the champion."""
    for deployment, id in release.other_deployments(run).items():
        found = runs.get(id)
        if found is None or found[0].ended:
            release.delete_deployment(run, deployment)
    # By the records, not by the deployments: after a crash in between, these are gone already.
    for other in runs.summaries(f"{run.model}-"):
        if other.model == run.model and other.stage == Stage.LIVE and other.id != run.id:
            found = runs.get(other.id)
            if found is not None and found[0].stage == Stage.LIVE:
                found[0].move(Stage.RETIRED, f"replaced by {run.id}", utc_now())
                runs.save(*found)


def _recipe(run: Run) -> Recipe:
    return msgspec.convert(run.recipe, Recipe)


def _engine(run: Run) -> engines.Engine:
    return engines.engine(_recipe(run))


def _transient(error: Exception) -> bool:
    # No token, or a role assignment that has not reached every server yet: both pass, or need a person and time.
    if isinstance(error, ClientAuthenticationError):
        return True
    if isinstance(error, HttpResponseError):
        return error.status_code is None or error.status_code in TRANSIENT_STATUS
    return isinstance(error, (TransientError, ServiceRequestError, ServiceResponseError))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
