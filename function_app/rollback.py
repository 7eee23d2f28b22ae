"""The way back to a model that was registered before: a run of its own, which begins with the release."""

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice

import msgspec

from . import model_versions
from .advance import wake
from .operations_answers import Refused
from .operations_runs import of_model, under_way
from .runs import Run, RunStore, Stage, Summary, utc_now

log = logging.getLogger("function_app.rollback")

MOST_READ = 20  # records that are read to find the one of a version, or of the model that served before
MOST_AGAIN = 50  # rollbacks from one and the same model
CLOCKS = timedelta(minutes=2)  # by which the storage's clock and ours may differ
KEPT_LINKS = ("job", "report", "evaluation")
SERVED = (Stage.LIVE, Stage.RETIRED)
MEASURED_ANEW = "verification"  # of the numbers: what the deployment answered when it was first released


def roll_back(runs: RunStore, model: str, version: str, by: str, note: str = "") -> tuple[Run, bool]:
    """Have a version of a model serve again, by default the one that served before; the run that does it, and whether
    that is still to come.

    Asking again, while that is under way or when it serves already, gives the same run. Raises Refused while another
    release of the model is under way, and for a version that cannot be had.
    """
    if version and not model_versions.VERSION.fullmatch(version):
        raise Refused(400, "invalid_field", f"version must be one of those that GET operations/models/{model} lists.")
    for _ in range(2):  # of two that ask at once one makes the record, and the other finds it
        summaries = of_model(runs, model)
        if not summaries:
            raise Refused(404, "not_found", f"There is no model {model}; GET operations/models lists them.")
        if same := _already(runs, summaries, version):
            wake(same.id)
            return same, True
        serving = next(_records(runs, (each for each in summaries if each.stage == Stage.LIVE)), None)
        if serving and version == serving.model_version:
            return serving, False
        target = _target(runs, model, version, summaries) if version else _before(runs, summaries, serving)
        run = _new_run(runs, target, serving, by, note)
        if runs.create(run):
            log.info("rollback run_id=%s release_of=%s version=%s", run.id, target.id, run.version)
            wake(run.id)
            return run, True
    raise Refused(503, "busy", f"Another rollback of {model} is beginning at this moment; ask again.")


def rollback_id(model: str, before: str) -> str:
    """The id of the rollback from what the run ``before`` has brought live ("": nothing serves).

    The version is not part of it: when two people ask at once for different versions, only one gets their way.
    """
    digest = sha256(f"rollback\n{before}".encode()).hexdigest()
    return f"{model}-{digest[:12]}"


def find_version(
    runs: RunStore, model: str, version: str, summaries: list[Summary]
) -> tuple[model_versions.Asset | None, Run | None]:
    """A version of a model as it is registered, and the run that made it; None for what is not there."""
    asset = model_versions.look_up(model, version)
    if asset is not None:
        found = runs.get(asset.run_id) if asset.run_id.startswith(f"{model}-") else None
        return asset, found[0] if found and found[0].model_version == version else None
    # The service registers models under other names. A version is the time at which its run was received.
    try:
        received = datetime.strptime(version + "000", "%Y%m%d%H%M%S%f").replace(tzinfo=UTC)
    except ValueError:
        return None, None
    near = (each for each in summaries if not each.rollback and each.uploaded_at <= received + CLOCKS)
    run = next((each for each in _records(runs, near) if each.model_version == version), None)
    return (model_versions.look_up(*model_versions.asset_of(run)) if run else None), run


def _already(runs: RunStore, summaries: list[Summary], version: str) -> Run | None:
    """The rollback that is under way and does what is asked for. Raises Refused for a release that does not."""
    for run in _records(runs, under_way(summaries)):
        if run.ended:
            continue
        cancelled = run.asked is not None and run.asked.action == "cancel"
        if run.release_of and version in ("", run.version) and not cancelled:
            return run
        what = f"rollback to version {run.version}" if run.release_of else "release"
        mend = "wait for its end" if cancelled else "cancel that run first, or wait for its end"
        message = f"The {what} by run {run.id} is under way ({run.stage}); {mend}."
        raise Refused(409, "release_under_way", message, str(run.stage), run_id=run.id)
    return None


def _target(runs: RunStore, model: str, version: str, summaries: list[Summary]) -> Run:
    """The run whose model is to serve again. Raises Refused when the version cannot be had."""
    asset, run = find_version(runs, model, version, summaries)
    if asset is None:
        message = f"There is no version {version} of {model}; GET operations/models/{model} lists them."
        raise Refused(404, "not_found", message)
    if asset.archived:
        message = f"Version {version} of {model} was deleted (archived in Azure ML); restore it there first."
        raise Refused(409, "archived", message, "archived")
    if run is None:
        message = f"The run that made version {version} of {model} is not on record, so how to serve it is not known."
        raise Refused(409, "no_record", message, "no_record")
    return run


def _before(runs: RunStore, summaries: list[Summary], serving: Run | None) -> Run:
    """The run whose model served before the present one; when nothing serves, the last that did. Raises Refused."""
    if serving and serving.release_of:
        message = (
            f"What serves is itself the outcome of a rollback, to version {serving.version}; name the version to go to"
            f" (GET operations/models/{serving.model} lists them)."
        )
        raise Refused(409, "version_needed", message, str(serving.stage), run_id=serving.id)
    retired = list(_records(runs, (each for each in summaries if each.stage == Stage.RETIRED)))
    # A model that has served before serves again under a run of its own, so the latest to be retired is the one.
    run = max(retired, key=lambda each: each.stage_since, default=None)
    if run is None:
        message = "No model served before this one." if serving else "No model has ever served under this name."
        raise Refused(409, "nothing_before", message, str(serving.stage) if serving else None)
    return _target(runs, run.model, run.model_version, summaries)


def _new_run(runs: RunStore, target: Run, serving: Run | None, by: str, note: str) -> Run:
    now = utc_now()
    version = target.model_version
    numbers = {name: value for name, value in target.numbers.items() if name != MEASURED_ANEW}
    run = Run(
        id=_free_id(runs, target.model, serving.id if serving else ""),
        model=target.model,
        dataset=msgspec.structs.replace(target.dataset, uploaded_at=now),
        received_at=now,
        release_of=target.release_of or target.id,
        version=version,
        place=_place(target),
        recipe=target.recipe,
        numbers=numbers,
        links={name: target.links[name] for name in KEPT_LINKS if name in target.links},
    )
    reason = f"rollback to version {version}, asked for by {by}{f': {note}' if note else ''}"
    run.move(Stage.APPROVED, reason, now)
    return run


def _free_id(runs: RunStore, model: str, before: str) -> str:
    """The id of the next rollback; one that has ended already has used up its own."""
    for _ in range(MOST_AGAIN):
        id = rollback_id(model, before)
        found = runs.get(id)
        if found is None or not found[0].ended:
            return id
        before = id
    raise Refused(409, "too_many", f"{MOST_AGAIN} rollbacks from the model that serves have ended without success.")


def _place(target: Run) -> str:
    """The deployment that still has the target's version: releasing it takes a moment. "" when there is none."""
    if target.recipe.get("engine") == "service":
        return ""
    kept = model_versions.managed(target)
    return next((d.name for d in kept if d.version == target.model_version and d.state == "Succeeded"), "")


def _records(runs: RunStore, summaries: Iterable[Summary]) -> Iterator[Run]:
    """The records of the first few of them."""
    for summary in islice(summaries, MOST_READ):
        found = runs.get(summary.id)
        if found is not None:
            yield found[0]
