"""Event Grid triggers: an event becomes a run id on the queue; nothing else, and never an error.

Both are coroutines, and send their message in a thread of the event loop's own: plain functions would wait in the
worker's few threads behind files that are being checked, and what Event Grid does not get an answer to within 30
seconds it sends again, later and later.
"""

import asyncio
import logging
import re
from typing import Any
from urllib.parse import unquote

import azure.functions as func
from azure.eventgrid import SystemEventNames

from . import intake
from .advance import wake
from .runs import run_id
from .settings import settings

log = logging.getLogger("function_app.events")
blueprint = func.Blueprint()

BLOB_CREATED = str(SystemEventNames.StorageBlobCreatedEventName.value)
JOB_EVENTS = frozenset(
    str(name.value)
    for name in (
        SystemEventNames.MachineLearningServicesRunCompletedEventName,
        SystemEventNames.MachineLearningServicesRunStatusChangedEventName,
    )
)
# The name of a job: its run's id and, after the run was taken up again, a number (runs.Run.job).
JOB_NAME = re.compile(r"(?P<run_id>.+-[0-9a-f]{12})-\d{1,9}")
# Statuses after which a job goes on: nothing waits for them.
UNDER_WAY = frozenset(
    ("NotStarted", "Starting", "Provisioning", "Preparing", "Queued", "Running", "Finalizing", "CancelRequested")
)
# Calls that commit a whole file. On hierarchical accounts CreateFile comes first, with nothing in the file.
COMMITS = ("PutBlob", "PutBlockList", "CopyBlob", "FlushWithClose")


@blueprint.event_grid_trigger(arg_name="event")
async def on_dataset_uploaded(event: func.EventGridEvent) -> None:
    """BlobCreated in the datasets container: ask for its run."""
    data = _data(event)
    name = _blob_name(event.subject or "")
    etag = str(_get(data, "eTag") or "").strip('"')
    committed = _kind(event) == BLOB_CREATED and _get(data, "api") in COMMITS
    if not committed or not name or not etag:
        log.info("event id=%s ignored: no committed file of %s", event.id, settings().datasets_container)
        return
    model = intake.model_of(name)
    if model is None:
        return  # a recipe or a held-out file: read when the next dataset comes
    id = run_id(model, name, etag)
    await asyncio.to_thread(wake, id, {"blob": name, "etag": etag})
    log.info("event id=%s run_id=%s", event.id, id)


@blueprint.event_grid_trigger(arg_name="event")
async def on_job_event(event: func.EventGridEvent) -> None:
    """A job of Azure ML has ended: look at its run. Jobs of others have no record and are dropped there."""
    data = _data(event)
    job = _get(data, "runId") or (event.subject or "").rpartition("/runs/")[2]
    id = _run_of(job, _get(data, "runTags")) if isinstance(job, str) and _kind(event) in JOB_EVENTS else ""
    if not id:
        log.info("event id=%s ignored: not a job of ours", event.id)
        return
    if str(_get(data, "runStatus")) in UNDER_WAY:
        return
    await asyncio.to_thread(wake, id)
    log.info("event id=%s run_id=%s", event.id, id)


def _run_of(job: str, tags: Any) -> str:
    """The id of the run that a job is of: its tag says so; without tags its name tells. "" for somebody else's."""
    if isinstance(tags, dict) and tags:
        id = _get(tags, "run_id")
        ours = isinstance(id, str) and (job == id or re.fullmatch(rf"{re.escape(id)}-\d{{1,9}}", job))
        return str(id) if ours else ""
    match = JOB_NAME.fullmatch(job)
    return match["run_id"] if match else job


def _kind(event: func.EventGridEvent) -> str:
    """The type, in either schema: azure-functions gives a CloudEvent, whatever the annotation, when one was sent."""
    return str(getattr(event, "event_type", None) or getattr(event, "type", None) or "")


def _data(event: func.EventGridEvent) -> dict[str, Any]:
    try:
        data = event.get_json()
    except (ValueError, TypeError):
        return {}
    return data if isinstance(data, dict) else {}


def _get(data: dict[str, Any], name: str) -> Any:
    """A field whatever its case: payloads and documentation differ (runId, RunId; eTag, etag)."""
    return next((value for key, value in data.items() if key.lower() == name.lower()), None)


def _blob_name(subject: str) -> str:
    """``/blobServices/default/containers/<container>/blobs/<name>`` → ``<name>``; "" for other containers."""
    prefix = f"/blobServices/default/containers/{settings().datasets_container}/blobs/"
    return unquote(subject.removeprefix(prefix)) if subject.startswith(prefix) else ""
