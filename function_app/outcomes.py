"""Tells an Event Grid topic how runs have ended, when one is configured.

The events have Event Grid's own schema, which is the one that a topic takes unless it was made for another. Whoever
subscribes to such a topic chooses the form in which it wants them, CloudEvents too; a topic that takes CloudEvents can
deliver nothing else. docs/interfaces.md has the fields.
"""

import logging
import time
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError

from . import azure_clients
from .runs import Event, Run, Stage, utc_now
from .settings import settings

if TYPE_CHECKING:
    from azure.eventgrid import EventGridEvent, EventGridPublisherClient

log = logging.getLogger("function_app.outcomes")

STAGES = {
    "RunLive": Stage.LIVE,
    "RolledBack": Stage.LIVE,
    "RunRejected": Stage.REJECTED,
    "RunFailed": Stage.FAILED,
}
KINDS = {Stage.LIVE: "RunLive", Stage.REJECTED: "RunRejected", Stage.FAILED: "RunFailed"}
# Nothing is held up by a topic: one attempt takes no longer than these (seconds), the next one is the next look at the
# run, and a topic that takes nothing for a day is not going to. After a failure that took its time this process leaves
# the topic alone for a while, or the runs that end meanwhile would each wait in a thread that the others need.
CONNECT_SECONDS, READ_SECONDS = 3, 5
SLOW_SECONDS = 1.0
SILENCE = timedelta(minutes=5)
GIVE_UP_AFTER = timedelta(days=1)
LONGEST_REASON = 1000  # characters; a container's last words may be in it

_silent_since: datetime | None = None


def wanted() -> bool:
    """Whether there is a topic."""
    return bool(settings().outcome_topic_endpoint)


def kind(run: Run) -> str:
    """The outcome's type; "" for an end that nobody is told of."""
    return "RolledBack" if run.stage == Stage.LIVE and run.release_of else KINDS.get(run.stage, "")


def publish(run: Run) -> bool:
    """Send what is in the run's outbox; False when that is to be tried again.

    The ids follow from run and outcome: one that is sent twice can be told by its receiver.
    """
    global _silent_since
    if not wanted():
        return True
    if _silent_since and abs(utc_now() - _silent_since) < SILENCE:
        return _too_late(run, "silent a moment ago")
    started = time.monotonic()
    try:
        # Of each call, because the client does not pass on what its constructor is told. A retry would be a wait here.
        _client().send(
            [_event(run, kind) for kind in run.outbox],
            connection_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retry_total=0,
        )
    except AzureError as error:
        if time.monotonic() - started > SLOW_SECONDS:
            _silent_since = utc_now()
        return _too_late(run, _in_words(error))
    log.info("publish run_id=%s outcomes=%s", run.id, ",".join(run.outbox))
    return True


def _too_late(run: Run, error: str) -> bool:
    waited = utc_now() - min(_entry(run, kind)[1].at for kind in run.outbox)
    outcomes = ",".join(run.outbox)
    if waited < GIVE_UP_AFTER:
        log.warning("publish run_id=%s outcomes=%s error=%s", run.id, outcomes, error)
        return False
    log.error(
        "publish run_id=%s outcomes=%s given_up_after=%s error=%s: see whether OUTCOME_TOPIC_ENDPOINT is right and the"
        " app's identity has the role EventGrid Data Sender on the topic",
        run.id,
        outcomes,
        waited,
        error,
    )
    return True


def _event(run: Run, kind: str) -> "EventGridEvent":
    from azure.eventgrid import EventGridEvent

    number, entry = _entry(run, kind)
    return EventGridEvent(
        id=f"{run.id}-{kind}-{number}",
        subject=f"/models/{run.model}/runs/{run.id}",
        event_type=f"FineTuning.{kind}",
        event_time=entry.at,
        data=_data(run, entry),
        data_version="1",
    )


def _entry(run: Run, kind: str) -> tuple[int, Event]:
    """The line of the history that the outcome is, and its number: the run may have moved on since, to retired say."""
    found = [(number, entry) for number, entry in enumerate(run.history, 1) if entry.stage == STAGES[kind]]
    return found[-1] if found else (len(run.history), run.history[-1])


def _data(run: Run, entry: Event) -> dict[str, Any]:
    """What a receiver needs to decide and to go on reading; nothing of what was trained on or answered."""
    registered = run.version or any(each.stage == Stage.REGISTERED for each in run.history)
    return {
        "run_id": run.id,
        "model": run.model,
        "model_version": run.model_version if registered else None,
        "rollback_to": run.release_of or None,
        "dataset": run.dataset.blob,
        "dataset_etag": run.dataset.etag,
        "stage": str(entry.stage),
        "reason": entry.reason[:LONGEST_REASON],
        "received_at": run.received_at.isoformat(),
        "at": entry.at.isoformat(),
        "numbers": _numbers(run.numbers),
        "links": {**run.links, "run": f"/api/operations/runs/{run.id}"},
    }


def _numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """Of what the record holds, what fits on a line; a number that is not known is left out."""
    dataset, estimate = numbers.get("dataset") or {}, numbers.get("estimate") or {}
    losses = {model: (measured or {}).get("loss") for model, measured in (numbers.get("eval") or {}).items()}
    brief = {
        "records": {"train": dataset.get("train"), "eval": dataset.get("eval")},
        "training": {"steps": numbers.get("steps"), "seconds": (numbers.get("train") or {}).get("seconds")},
        "estimate": {"seconds": estimate.get("seconds"), "cost": estimate.get("cost")},
        "loss": losses,
        "safety": (numbers.get("safety") or {}).get("severities") or {},
        "verification": numbers.get("verification") or {},
    }
    known = {
        name: {key: value for key, value in group.items() if isinstance(value, int | float)}
        for name, group in brief.items()
    }
    return {name: group for name, group in known.items() if group}


def _in_words(error: AzureError) -> str:
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__} {status}" if status else type(error).__name__


@lru_cache(maxsize=1)
def _client() -> "EventGridPublisherClient":
    from azure.eventgrid import EventGridPublisherClient

    return EventGridPublisherClient(settings().outcome_topic_endpoint, azure_clients.credential())
