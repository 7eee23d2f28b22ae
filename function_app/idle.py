"""The idle watch: retires models that nobody chats with, so that a forgotten GPU stops costing. Part of the sweep."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from azure.core.exceptions import AzureError

from . import live_record, usage
from .live_record import Serving
from .runs import Ask, Conflict, Run, RunStore, Stage

log = logging.getLogger("function_app.idle")

BY = "the idle watch"


def retire_idle(
    runs: RunStore, wake: Callable[[str], None], now: datetime, releasing: frozenset[str] | set[str] = frozenset()
) -> None:
    """Ask the runs of the models that were idle for too long to retire; not of those in ``releasing``, which get a
    new model right now.

    Two listings, of the live records and of the marks, whatever the number of models; blobs are read for those alone
    that are retired.
    """
    used = usage.last_used()
    for serving in live_record.listing():
        if serving.model in releasing or not is_idle(serving, used.get(serving.model), now):
            continue
        try:
            _ask(runs, wake, serving, now)
        except Conflict:
            log.info("idle model=%s run_id=%s moved_by=another", serving.model, serving.run_id)
        except AzureError as error:  # the other models are looked at all the same, and this one at the next sweep
            log.warning("idle model=%s run_id=%s error=%s", serving.model, serving.run_id, type(error).__name__)


def is_idle(serving: Serving, used: datetime | None, now: datetime) -> bool:
    """Whether the model has answered no chat for its hours: none since it went live, and none since the mark ``used``.

    A mark may be older than the last chat by the interval in which none is written.
    """
    if not serving.idle_hours:
        return False
    last = max(serving.since, used) if used else serving.since
    return now - last > timedelta(hours=serving.idle_hours) + usage.INTERVAL


def used_since_asked(run: Run) -> bool:
    """Whether the watch has asked the run to retire, and its model has answered a chat after all."""
    if run.asked is None or run.asked.action != "retire" or run.asked.by != BY:
        return False
    used = usage.when_used(run.model)
    limit = timedelta(hours=live_record.idle_hours(run.recipe)) + usage.INTERVAL
    return used is not None and used > run.asked.at - limit


def _ask(runs: RunStore, wake: Callable[[str], None], serving: Serving, now: datetime) -> None:
    found = runs.get(serving.run_id)
    if found is None:
        log.error(
            "idle model=%s run_id=%s has no record: delete the endpoint and live/%s.json by hand",
            serving.model,
            serving.run_id,
            serving.model,
        )
        return
    run, etag = found
    if run.stage != Stage.LIVE or run.asked or not is_idle(serving, usage.when_used(run.model), now):
        return  # the listings were a moment ago
    run.asked = Ask("retire", BY, now, f"no chat for {serving.idle_hours:g} hours")
    runs.save(run, etag)
    wake(run.id)
    log.info("idle model=%s run_id=%s hours=%g", run.model, run.id, serving.idle_hours)
