"""What people ask for, as the operations API does it: a wish in the record by compare-and-swap, then a message."""

from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec

from function_app import advance, live_record
from function_app.runs import Ask, Conflict, DatasetVersion, Run, Stage

RELEASING = (Stage.REGISTERED, Stage.DEPLOYING, Stage.VERIFYING, Stage.SHIFTING)


def ask(run_id: str, action: Any, now: datetime) -> Stage | None:
    """Ask it of a run that may answer it; the stage that it was in, None when it cannot be asked (now)."""
    store = advance.store()
    while found := store.get(run_id):
        run, etag = found
        if not _may(run, action):
            return None
        asked_at = run.stage
        run.asked = Ask(action, "alice", now, "as the schedule says")
        try:
            store.save(run, etag)
        except Conflict:
            continue
        advance.wake(run_id)
        return asked_at
    return None


def _may(run: Run, action: str) -> bool:
    match action:
        case "cancel":
            return not run.ended
        case "approve" | "reject":
            return run.stage == Stage.TRAINED and (run.recipe.get("gate") or {}).get("rule") == "manual"
        case "retry":
            return run.stage in (Stage.FAILED, Stage.CANCELLED)
        case _:
            return run.stage == Stage.LIVE


def runs_of(model: str) -> list[Run]:
    store = advance.store()
    found = [store.get(summary.id) for summary in store.summaries(f"{model}-")]
    return [each[0] for each in found if each]


def roll_back(model: str, deployments: set[str], now: datetime) -> str | None:
    """Release again what served before the model that serves now; the new run's id, None when that cannot be done.

    ``deployments``: those that are there; the old model's own may still be.
    """
    runs = runs_of(model)
    live = next((run for run in runs if run.stage == Stage.LIVE), None)
    if live is None or any(run.stage in RELEASING for run in runs):
        return None
    served = [run for run in runs if run.stage == Stage.RETIRED and run.model_version != live.model_version]
    if not served or (live_record.read(model) or {}).get("run_id") != live.id:
        return None
    source = max(served, key=lambda run: run.stage_since)
    digest = sha256(f"rollback\n{source.model_version}\n{live.id}".encode()).hexdigest()
    copied = source.dataset
    run = Run(
        id=f"{model}-{digest[:12]}",
        model=model,
        dataset=DatasetVersion(copied.blob, copied.etag, copied.size, now),
        received_at=now,
        release_of=source.id,
        version=source.model_version,
        place=source.deployment if source.deployment in deployments else "",
        recipe=source.recipe,
        numbers=msgspec.json.decode(msgspec.json.encode(source.numbers)),
    )
    run.move(Stage.APPROVED, f"back to version {source.model_version}", now)
    advance.store().create(run)
    advance.wake(run.id)
    return run.id
