"""What operators see of runs, and what they may ask of them."""

import random
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from heapq import nlargest
from typing import Any, Literal

import msgspec

from .advance import wake
from .intake import MODEL_NAME
from .operations_answers import Refused, not_found, page
from .recipe import stored_recipe
from .runs import Ask, Conflict, Run, RunStore, Stage, Summary, utc_now
from .settle import RELEASING

RUN_ID = re.compile(r"[a-z][a-z0-9-]{1,24}-[0-9a-f]{12}")
CURSOR = re.compile(rf"(?P<micros>\d{{1,17}})~(?P<id>{RUN_ID.pattern})")
MOST_LISTED = 100_000  # runs that a listing looks at: two hundred requests to the storage
SAVES = 12  # a run that is being moved at this moment is saved every few milliseconds
Action = Literal["approve", "reject", "cancel", "retry", "retire"]
PASSED_GATE = RELEASING | {Stage.APPROVED}  # it changes, or is about to change, what its model's endpoint serves


def list_runs(runs: RunStore, model: str, stage: str, limit: int, after: str) -> dict[str, Any]:
    """A page of runs, the newest data first, by the listing's facts alone: no record is read. Raises Refused."""
    if stage and stage not in set(Stage):
        raise Refused(400, "invalid_stage", f"stage must be one of {', '.join(Stage)}.")
    if model and not MODEL_NAME.fullmatch(model):
        raise Refused(400, "invalid_model", "model must be a model's name; GET operations/models lists them.")
    last = _position(after)
    chosen = (
        summary
        for summary in listed(runs, f"{model}-" if model else "")
        if (not model or summary.model == model)
        and (not stage or summary.stage == stage)
        and (last is None or _key(summary) < last)
    )
    rows = nlargest(limit + 1, chosen, key=_key)
    cursor = "{}~{}".format(*_key(rows[limit - 1])) if len(rows) > limit else ""
    return page("runs", [_in_list(summary) for summary in rows], limit, cursor)


def get_run(runs: RunStore, id: str) -> dict[str, Any]:
    """A run's whole record, with what may be asked of it now. Raises Refused."""
    run, _ = find(runs, id)
    return {**msgspec.to_builtins(run), **_derived(run)}


def find(runs: RunStore, id: str) -> tuple[Run, str]:
    """The record and its ETag. Raises Refused when there is none."""
    found = runs.get(id) if RUN_ID.fullmatch(id) else None
    if found is None:
        raise not_found("run of this id", "GET operations/runs lists them")
    return found


def ask(runs: RunStore, id: str, action: Action, by: str, note: str = "") -> tuple[Run, bool]:
    """Have a run approved, rejected, cancelled, taken up again or retired; the run, and whether that is still to come.

    The wish is saved in the record, and the state machine does it at its next look; asking again changes nothing, but
    wakes the run again. Raises Refused when the run's state forbids it.
    """
    for attempt in range(SAVES):
        run, etag = find(runs, id)
        done = verdict(run, action)
        if done == "done":
            return run, nudged(run)
        try:
            if done == "ask":
                run.asked = Ask(action, by, utc_now(), note)
                runs.save(run, etag)
            wake(run.id)
        except Conflict:  # the run has been moved, or another person was faster: what is there now decides
            time.sleep(random.uniform(0, 0.02 * (attempt + 1)))  # noqa: S311
            continue
        return run, True
    raise Refused(503, "busy", f"The run {id} is being moved at this moment; ask again.")


def nudged(run: Run) -> bool:
    """Whether an ended run still deletes what it has left on Azure; then it is made to look again at once."""
    deleting = run.ended and run.cleanup not in ("", "replaced")
    if deleting:
        wake(run.id)
    return deleting


def verdict(run: Run, action: Action) -> Literal["ask", "pending", "done"]:
    """Whether ``action`` is to be asked for, is under way, or has been done already. Raises Refused. No I/O."""
    if run.asked and run.asked.action == action:
        return "pending"
    match action:
        case "approve" | "reject":
            return _at_the_gate(run, action)
        case "cancel":
            return _cancel(run)
        case "retry":
            return _retry(run)
    if run.stage == Stage.RETIRED:
        return "pending" if run.cleanup == "endpoint" else "done"
    if run.stage != Stage.LIVE:
        raise forbidden(run, f"The run {run.id} is {run.stage}; only one that is live can be retired.")
    return "ask"


def allowed(run: Run) -> list[str]:
    """What may be asked of the run now."""
    found: list[str] = []
    actions: tuple[Action, ...] = ("approve", "reject", "cancel", "retry", "retire")
    for action in actions:
        try:
            if verdict(run, action) == "ask":
                found.append(action)
        except Refused:
            continue
    return found


def forbidden(run: Run, message: str, code: str = "wrong_state") -> Refused:
    return Refused(409, code, message, str(run.stage), run_id=run.id)


def brief(run: Run) -> dict[str, Any]:
    """A run in the answer to something that was asked of it: no numbers, no samples."""
    return {"id": run.id, "model": run.model, "stage": str(run.stage), "links": run.links, **_derived(run)}


def of_model(runs: RunStore, model: str) -> list[Summary]:
    """The runs of a model, the newest data first."""
    return sorted((each for each in listed(runs, f"{model}-") if each.model == model), key=_key, reverse=True)


def listed(runs: RunStore, prefix: str = "") -> Iterator[Summary]:
    """The runs whose id begins with ``prefix``. Raises Refused when they are too many to look at in one request."""
    for number, summary in enumerate(runs.summaries(prefix)):
        if number == MOST_LISTED:
            message = f"More than {MOST_LISTED:,} runs are on record: name a model, or delete old records."
            raise Refused(400, "too_many_runs", message)
        yield summary


def under_way(summaries: list[Summary]) -> Iterator[Summary]:
    """Those that are being released."""
    return (summary for summary in summaries if summary.stage in PASSED_GATE)


def _at_the_gate(run: Run, action: Action) -> Literal["ask", "done"]:
    if run.stage != Stage.TRAINED:
        passed = any(event.stage == Stage.APPROVED for event in run.history)
        if action == "approve" and passed and (not run.ended or run.stage == Stage.LIVE):
            return "done"
        if action == "reject" and run.stage == Stage.REJECTED:
            return "done"
        raise forbidden(
            run, f"The run {run.id} is {run.stage}; only one that waits at the gate, trained, can be judged."
        )
    rule = stored_recipe(run.recipe).gate.rule
    if rule != "manual":
        raise forbidden(
            run, f"The gate of the run {run.id} decides by its rule {rule}; people decide with rule manual."
        )
    if run.asked:
        message = f"Another decision on the run {run.id} was first: {run.asked.action}, asked for by {run.asked.by}."
        raise forbidden(run, message, "already_asked")
    return "ask"


def _cancel(run: Run) -> Literal["ask", "done"]:
    """It wins over whatever else was asked of the run and is not yet done."""
    if run.stage == Stage.CANCELLED:
        return "done"
    if run.ended:
        mend = "; retire the model, or roll back" if run.stage == Stage.LIVE else ""
        raise forbidden(run, f"The run {run.id} is {run.stage} and cannot be cancelled{mend}.")
    if run.share == 100:
        raise forbidden(run, f"The run {run.id} has all the traffic and is going live; roll back, or retire the model.")
    return "ask"


def _retry(run: Run) -> Literal["ask", "done"]:
    if run.stage in (Stage.FAILED, Stage.CANCELLED):
        return "ask"
    if not run.ended and any(event.stage in (Stage.FAILED, Stage.CANCELLED) for event in run.history):
        return "done"  # it was taken up again, and goes on
    if run.ended:
        mend = "only failed and cancelled ones can"
        if run.stage == Stage.REJECTED:
            mend = "mend what its reason says and drop the file again"
        raise forbidden(run, f"The run {run.id} is {run.stage} and cannot be taken up again; {mend}.")
    raise forbidden(run, f"The run {run.id} is {run.stage}: it is under way, so there is nothing to take up again.")


def _derived(run: Run) -> dict[str, Any]:
    latest = run.history[-1] if run.history else None
    return {
        "since": run.stage_since,
        "reason": latest.reason if latest else "",
        "waiting": run.waiting,
        "asked": run.asked,
        "job": "" if run.release_of else run.job,  # a rollback trains nothing
        "deployment": run.deployment,
        "model_version": run.model_version,
        "unsettled": run.ended and run.unsettled,
        "may": allowed(run),
    }


def _in_list(summary: Summary) -> dict[str, Any]:
    return {
        "id": summary.id,
        "model": summary.model,
        "stage": str(summary.stage),
        "uploaded_at": summary.uploaded_at,
        "rollback": summary.rollback,
        "unsettled": summary.unsettled,
    }


def _key(summary: Summary) -> tuple[int, str]:
    """The order of lists, and the cursor's content: microseconds, because a float would not come back the same."""
    since = summary.uploaded_at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds, summary.id


def _position(after: str) -> tuple[int, str] | None:
    if not after:
        return None
    match = CURSOR.fullmatch(after)
    if match is None:
        raise Refused(400, "invalid_after", "after must be what the page before gave as its after.")
    return int(match["micros"]), match["id"]
