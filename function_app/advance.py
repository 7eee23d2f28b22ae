"""What moves runs: the queue trigger that reads, observes, acts and saves; the sweep; the poison queue."""

import base64
import json
import logging
import math
from contextlib import suppress
from datetime import datetime, timedelta

import azure.functions as func
import msgspec
from azure.core.exceptions import ResourceNotFoundError

from . import azure_clients, idle, intake, poison, stray_traffic
from .observe import Others
from .runs import (
    ENDS,
    LATE,
    PAGE,
    BlobRunStore,
    Conflict,
    DatasetVersion,
    Run,
    RunStore,
    Stage,
    new_run,
    run_id,
    utc_now,
)
from .settings import settings
from .settle import RELEASING, finish, left_at, settle, waiting_for_turn
from .step_kinds import Finish, Nothing, Wait
from .steps import take

log = logging.getLogger("function_app.advance")
blueprint = func.Blueprint()

ENDED_BADLY = ENDS - {Stage.LIVE, Stage.RETIRED}
MAX_STEPS = 30  # of one invocation; a whole run has fewer
MAX_DELAY = timedelta(days=6)  # a queue message can be hidden for seven
MAX_REVIVALS, REVIVE_AFTER = 3, timedelta(minutes=15)
# A queue whose next message has waited this long is behind. Shorter than the time between two sweeps, so that what one
# has woken is not woken again by the next while it waits.
BEHIND = timedelta(seconds=10)


def store() -> RunStore:
    return BlobRunStore(azure_clients.container(settings().runs_container))


def wake(run_id: str, dataset: dict[str, str] | None = None, at: datetime | None = None) -> None:
    """Send the message that makes ``advance_run`` look at a run, now or at the time ``at``."""
    message: dict[str, object] = {"run_id": run_id}
    seconds = 0
    if dataset:
        message["dataset"] = dataset
    if at:
        message["at"] = at.isoformat()
        seconds = math.ceil(min(max(at - utc_now(), timedelta(0)), MAX_DELAY).total_seconds())
    # A new message for each healthy wait: raising instead would count towards the poison queue.
    azure_clients.runs_queue().send_message(json.dumps(message), visibility_timeout=seconds, time_to_live=-1)


@blueprint.queue_trigger(arg_name="message", queue_name="%RUNS_QUEUE%", connection="Storage")
def advance_run(message: func.QueueMessage) -> None:
    """Bring one run as far as it goes without waiting."""
    body = message.get_body()
    content = _parse(body)
    if content is None:
        poison.keep(body)  # trying again would not make it better
        return
    if (message.dequeue_count or 1) > 1:  # whoever had it first has died, or failed
        _look_for_strays(store(), content["run_id"])
    advance(content["run_id"], content.get("dataset"), content.get("at", ""))


@blueprint.queue_trigger(arg_name="message", queue_name="%RUNS_QUEUE%-poison", connection="Storage")
def bury_run(message: func.QueueMessage) -> None:
    """A message that failed five times is kept; its run is looked at again later, and after three times that ended."""
    body = message.get_body()
    content = _parse(body)
    if content is None:
        poison.keep(body)
        return
    id = content["run_id"]
    name = poison.keep(body, id)
    try:
        found = store().get(id)
    except msgspec.MsgspecError:
        log.exception("poison run_id=%s kept=%s: its record cannot be read", id, name)
        return
    if found is None:
        log.error("poison run_id=%s kept=%s has no record", id, name)
        return
    try:
        _revive(*found, name)
    except Conflict:
        log.info("poison run_id=%s moved_by=another", id)


def _revive(run: Run, etag: str, kept: str) -> None:
    """Mark the run with its message, and look at it again after a while. One that has ended is left to the sweep."""
    run.revivals += 1
    run.links["poison"] = kept
    log.error("poison run_id=%s stage=%s revivals=%d kept=%s", run.id, run.stage, run.revivals, kept)
    if not run.ended and run.revivals <= MAX_REVIVALS:
        _schedule(store(), run, etag, REVIVE_AFTER)
        return
    if not run.ended:
        finish(run, Finish(Stage.FAILED, poison.GAVE_UP))
        _schedule(store(), run, etag, timedelta(0))
        return
    run.wake_at = None  # the message is gone
    store().save(run, etag)


@blueprint.timer_trigger(arg_name="timer", schedule="%SWEEP_SCHEDULE%")
def sweep(timer: func.TimerRequest) -> None:
    """Find what was forgotten: files without a run, runs without a message, models without a chat."""
    # As long as messages wait for their turn, a file without a record is most likely one whose message is among them.
    # Waking it would make the queue longer, at every sweep again. A message that is really lost is found once the
    # queue is short, and that is soon: with a long one Azure starts more instances.
    if _behind():
        log.info("sweep put_off=queue late=%s", timer.past_due)
        return
    known: set[str] = set()
    releasing: set[str] = set()
    woken, now = 0, utc_now()
    for summary in store().summaries():
        known.add(summary.id)
        if summary.stage in RELEASING:
            releasing.add(summary.model)
        if (summary.stage not in ENDS or summary.unsettled) and summary.overdue < now:
            wake(summary.id)
            woken += 1
    for blob in azure_clients.container(settings().datasets_container).list_blobs(results_per_page=PAGE):
        model = intake.model_of(blob.name)
        if model is None:
            continue
        etag = blob.etag.strip('"')
        id = run_id(model, blob.name, etag)
        # A file this young has its event still under way.
        if id not in known and blob.last_modified < now - LATE:
            wake(id, {"blob": blob.name, "etag": etag})
            woken += 1
    if woken:
        log.info("sweep woken=%d late=%s", woken, timer.past_due)
    idle.retire_idle(store(), wake, now, releasing)


def _behind() -> bool:
    """Whether messages wait longer for their turn than they should. By the queue's front, not by its length: that
    counts also the messages that were sent ahead, one for each run that waits."""
    for message in azure_clients.runs_queue().peek_messages(max_messages=32):
        if message.dequeue_count:
            continue  # it failed and came back, which says nothing of the others
        due = message.inserted_on or utc_now()
        with suppress(ValueError, TypeError, KeyError):  # sent for now, or by somebody else
            # One that was sent ahead is older than the time for which it was sent.
            due = max(due, datetime.fromisoformat(json.loads(base64.b64decode(message.content))["at"]))
        if due < utc_now() - BEHIND:
            return True
    return False


def _parse(body: bytes) -> dict | None:  # type: ignore[type-arg]
    """A message's content; None for one that nobody of ours has sent."""
    try:
        content = json.loads(body)
        if isinstance(content["run_id"], str) and isinstance(content.get("dataset", {}), dict):
            return content  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError):
        pass
    log.error("message kept apart: not a JSON object with a run_id, bytes=%d", len(body))
    return None


def advance(id: str, dataset: dict[str, str] | None = None, at: str = "") -> None:
    """Take step after step until the run has to wait or has ended; the record is saved after each.

    A killed invocation leaves the last saved record, from which the message, once it is visible again, goes on.
    """
    runs = store()
    found = runs.get(id) or _receive(runs, id, dataset)
    if found is None:
        return None
    run, etag = found
    stage, others = run.stage, Others()
    try:
        for _ in range(MAX_STEPS):
            stage = run.stage
            wait = None
            if run.ended and (run.outbox or run.cleanup):
                etag, wait = _settle(runs, run, etag)
                if wait and not run.asked:
                    return _sleep(runs, run, etag, wait, at)
            step = take(runs, run, others)  # what a person asks for is answered at once where the end allows it
            if isinstance(step, Nothing):
                return _sleep(runs, run, etag, wait, at) if wait else None
            if isinstance(step, Wait):
                return _sleep(runs, run, etag, step, at)
            etag = runs.save(run, etag)
            if run.ended:
                _wake_waiting(runs, run)
        log.error("advance run_id=%s stage=%s steps=%d without an end", id, run.stage, MAX_STEPS)
        return _sleep(runs, run, etag, Wait(LATE, "too many steps at once"), at)
    except Conflict:
        # Another invocation has moved the run; it sends what messages are needed.
        log.info("advance run_id=%s moved_by=another", id)
        _look_for_strays(runs, id, stage)
    return None


def _look_for_strays(runs: RunStore, id: str, stage: Stage | None = None) -> None:
    """Have looked for what an invocation has started after another had ended the run, and found nothing to delete.

    ``stage``: at which that invocation was; for one that has died, the last before the end.
    """
    found = runs.get(id)
    if found is None:
        return
    run, etag = found
    if run.ended and any(event.stage in RELEASING for event in run.history):
        stray_traffic.mend(runs, run)
    if run.stage not in ENDED_BADLY or run.cleanup:
        return
    left = left_at(run, stage or run.history[-2].stage)
    if left:
        log.warning("advance run_id=%s strays=%s", id, left)
        run.cleanup, run.cleanup_at, run.wake_at = left, None, None
        with suppress(Conflict):
            runs.save(run, etag)
        wake(id)


def _receive(runs: RunStore, id: str, dataset: dict[str, str] | None) -> tuple[Run, str] | None:
    """Make the record of a file's version, if the file still is that version."""
    if dataset is None:
        log.warning("advance run_id=%s has no record", id)
        return None
    blob = dataset.get("blob", "")
    try:
        properties = azure_clients.container(settings().datasets_container).get_blob_client(blob).get_blob_properties()
    except ResourceNotFoundError:
        log.info("receive run_id=%s file=gone", id)
        return None
    etag = properties.etag.strip('"')
    if etag != dataset.get("etag"):
        # The newer version has an event of its own; should that be lost, the sweep finds it.
        log.info("receive run_id=%s file=replaced", id)
        return None
    model = intake.model_of(blob) or intake.UNPLACED
    version = DatasetVersion(blob, etag, properties.size, properties.last_modified)
    run = new_run(model, version, utc_now())
    created = runs.create(run)
    return (run, created) if created else runs.get(id)


def _settle(runs: RunStore, run: Run, etag: str) -> tuple[str, Wait | None]:
    """Do what an ended run has left to do, as far as it can be done now; the ETag, and the wait for the rest."""
    before = (run.outbox, run.cleanup)
    wait = settle(runs, run, utc_now())
    if (run.outbox, run.cleanup) != before:
        if wait is None:
            run.wake_at = None
        etag = runs.save(run, etag)
        _wake_waiting(runs, run)
    return etag, wait


def _wake_waiting(runs: RunStore, run: Run) -> None:
    """One that waits for the turn to release would find out by itself, but later."""
    for id in waiting_for_turn(runs, run):
        wake(id)


def _sleep(runs: RunStore, run: Run, etag: str, step: Wait, at: str) -> None:
    """Send the message for the next look, unless one is under way that comes soon enough.

    Only the message that the record waits for (or, when that one is overdue, any) sends its successor: an event or a
    sweep in between must not start a second chain of messages.
    """
    now = utc_now()
    another = run.wake_at if run.wake_at and run.wake_at.isoformat() != at else None
    if another and now < another + LATE and another <= now + step.delay:
        return
    _schedule(runs, run, etag, step.delay)


def _schedule(runs: RunStore, run: Run, etag: str, delay: timedelta) -> None:
    run.wake_at = utc_now() + delay
    runs.save(run, etag)
    wake(run.id, at=run.wake_at)
