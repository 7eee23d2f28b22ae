"""Tells an Event Grid topic how runs have ended, when one is configured."""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError

from . import azure_clients
from .runs import Run, Stage
from .settings import settings

if TYPE_CHECKING:
    from azure.eventgrid import EventGridPublisherClient

log = logging.getLogger("function_app.outcomes")

KINDS = {Stage.LIVE: "RunLive", Stage.REJECTED: "RunRejected", Stage.FAILED: "RunFailed"}


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
    if not wanted():
        return True
    from azure.eventgrid import EventGridEvent

    events = [
        EventGridEvent(
            id=f"{run.id}-{kind}-{len(run.history)}",
            subject=f"/models/{run.model}/runs/{run.id}",
            event_type=f"FineTuning.{kind}",
            data=_data(run),
            data_version="1",
            event_time=run.stage_since,
        )
        for kind in run.outbox
    ]
    try:
        _client().send(events)
    except AzureError as error:
        log.warning("publish run_id=%s error=%s", run.id, type(error).__name__)
        return False
    log.info("publish run_id=%s outcomes=%s", run.id, ",".join(run.outbox))
    return True


def _data(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "model": run.model,
        "model_version": run.model_version,
        "dataset": run.dataset.blob,
        "stage": str(run.stage),
        "reason": run.history[-1].reason,
        "at": run.stage_since.isoformat(),
    }


@lru_cache(maxsize=1)
def _client() -> "EventGridPublisherClient":
    from azure.eventgrid import EventGridPublisherClient

    return EventGridPublisherClient(settings().outcome_topic_endpoint, azure_clients.credential())
