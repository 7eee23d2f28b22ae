"""What operators see of models, and how they retire one or delete a version of it."""

import logging
from collections import Counter
from itertools import islice
from typing import Any

import msgspec

from . import azure_clients, live_record, model_versions, usage
from .intake import MODEL_NAME, UNPLACED
from .live import PREFIX
from .model_versions import VERSION, Asset
from .operations_answers import Refused, not_found, page
from .operations_runs import MOST_LISTED, ask, forbidden, listed, nudged, of_model, under_way
from .rollback import MOST_READ, SERVED, find_version
from .runs import ENDS, Run, RunStore, Stage, Summary
from .settings import settings

log = logging.getLogger("function_app.operations")


def list_models(runs: RunStore, limit: int, after: str) -> dict[str, Any]:
    """A page of models in the order of their names, by the runs' listing alone. Raises Refused."""
    if after and not MODEL_NAME.fullmatch(after):
        raise Refused(400, "invalid_after", "after must be what the page before gave as its after.")
    serving = _serving()
    known: dict[str, list[Summary]] = {}
    for summary in listed(runs):
        if summary.model > after and summary.model != UNPLACED:
            known.setdefault(summary.model, []).append(summary)
    names = sorted(set(known) | {name for name in serving if name > after})[: limit + 1]
    rows = [{"model": name, "live": name in serving, **_counted(known.get(name, []))} for name in names]
    return page("models", rows, limit, names[limit - 1] if len(names) > limit else "")


def get_model(runs: RunStore, model: str, limit: int, after: str) -> dict[str, Any]:
    """The model's live record, last use, deployments and a page of its registered versions. Raises Refused."""
    if after and not VERSION.fullmatch(after):
        raise Refused(400, "invalid_after", "after must be what the page before gave as its after.")
    summaries = _known(runs, model)
    live = live_record.read(model)
    run = _any_record(runs, summaries)
    endpoint = model_versions.endpoint(run)
    deployments = [
        *model_versions.managed(run, endpoint["traffic"] if endpoint else {}),
        *model_versions.serverless(run),
    ]
    versions = model_versions.listed(model, limit + 1, after)
    cursor = versions[limit - 1]["version"] if len(versions) > limit else ""
    if not after and ((live or {}).get("auth") == "key" or not versions):
        versions += _by_the_service(runs, summaries)[: limit - len(versions[:limit])]
    shown = page("versions", versions, limit, cursor)
    return {
        "model": model,
        "live": live,
        "last_used": usage.when_used(model),
        "endpoint": endpoint,
        "deployments": [msgspec.to_builtins(each) for each in deployments],
        **_counted(summaries),
        **shown,
    }


def retire(runs: RunStore, model: str, by: str, note: str = "") -> tuple[Run, bool]:
    """Have a model's endpoint deleted; its registered versions stay. The run that served, and whether that is still to
    come. Raises Refused while a release is under way: it would serve afterwards."""
    summaries = _known(runs, model)
    for summary in under_way(summaries):
        message = f"The run {summary.id} is being released ({summary.stage}); cancel it first, or wait for its end."
        raise Refused(409, "release_under_way", message, str(summary.stage), run_id=summary.id)
    for summary in summaries:
        if summary.stage == Stage.LIVE:
            return ask(runs, summary.id, "retire", by, note)
    retired = [each for each in summaries if each.stage == Stage.RETIRED][:MOST_READ]
    found = [record[0] for each in retired if (record := runs.get(each.id))]
    if not found:
        raise Refused(409, "not_serving", f"No model serves as {model}, and none ever has.")
    run = max(found, key=lambda each: each.stage_since)
    return run, nudged(run)


def delete_version(runs: RunStore, model: str, version: str) -> Asset:
    """Archive a registered version. Raises Refused for one that is deployed, or about to be.

    Azure ML deletes no version that was ever used, and the lineage of others may lead to it: it leaves the lists.
    """
    summaries = _known(runs, model)
    if not VERSION.fullmatch(version):
        raise not_found(f"version {version[:20]!r} of {model}", f"GET operations/models/{model} lists them")
    asset, made_by = find_version(runs, model, version, summaries)
    if asset is None:
        raise not_found(f"version {version} of {model}", f"GET operations/models/{model} lists them")
    if asset.archived:
        return asset
    _refuse_if_needed(runs, model, version, made_by, summaries)
    model_versions.archive(asset)
    try:
        # A rollback may have begun meanwhile: it has looked before the version was archived.
        _refuse_if_needed(runs, model, version, made_by, of_model(runs, model))
    except Refused:
        model_versions.restore(asset)
        raise
    log.info("archive model=%s version=%s", asset.name, asset.version)
    return asset


def _refuse_if_needed(runs: RunStore, model: str, version: str, made_by: Run | None, summaries: list[Summary]) -> None:
    """Raises Refused when a run that is live or being released has the version, or any deployment has it."""
    for summary in summaries:
        if summary.stage == Stage.LIVE or summary in under_way([summary]):
            found = runs.get(summary.id)
            if found and found[0].model_version == version and (not found[0].ended or found[0].stage == Stage.LIVE):
                what = "serves" if found[0].stage == Stage.LIVE else "is being released"
                raise forbidden(found[0], f"Version {version} of {model} {what} (run {summary.id}).", "in_use")
    run = made_by or _any_record(runs, summaries)
    for place in [*model_versions.managed(run), *model_versions.serverless(run)]:
        if place.version == version or (made_by and place.run_id == made_by.id):
            message = f"The {place.kind} deployment {place.name} has version {version} of {model}; it must go first."
            raise Refused(409, "in_use", message, f"deployed as {place.name}", run_id=place.run_id)


def _known(runs: RunStore, model: str) -> list[Summary]:
    summaries = of_model(runs, model) if MODEL_NAME.fullmatch(model) else []
    if not summaries:
        raise not_found("model of this name", "GET operations/models lists them")
    return summaries


def _any_record(runs: RunStore, summaries: list[Summary]) -> Run:
    """A run of the model, by which its endpoint is named."""
    for summary in summaries:
        if found := runs.get(summary.id):
            return found[0]
    raise not_found("model of this name", "its records were deleted a moment ago")


def _by_the_service(runs: RunStore, summaries: list[Summary]) -> list[dict[str, Any]]:
    """The newest that served of what fine-tuning as a service has made: it gives each model a name of its own."""
    found: list[dict[str, Any]] = []
    for summary in [each for each in summaries if each.stage in SERVED and not each.rollback][:MOST_READ]:
        record = runs.get(summary.id)
        if record and record[0].recipe.get("engine") == "service":
            run = record[0]
            name, version = model_versions.asset_of(run)
            tags = {"registered_as": f"{name}:{version}", "dataset": run.dataset.blob}
            row = {"version": run.model_version, "run_id": run.id, "registered_at": run.received_at, "tags": tags}
            found.append(row)
    return found


def _counted(summaries: list[Summary]) -> dict[str, Any]:
    stages = Counter(str(each.stage) for each in summaries)
    newest = max(summaries, key=lambda each: each.uploaded_at, default=None)
    return {
        "runs": dict(sorted(stages.items())),
        "under_way": sum(each.stage not in ENDS for each in summaries),
        "newest_run": newest.id if newest else None,
    }


def _serving() -> set[str]:
    """The models that have a live record."""
    blobs = azure_clients.container(settings().runs_container).list_blob_names(name_starts_with=PREFIX)
    return {name.removeprefix(PREFIX).removesuffix(".json") for name in islice(blobs, MOST_LISTED)}
