"""What people ask for, by the operations API's own functions."""

from typing import Any

from function_app import advance, operations_models, operations_runs, rollback
from function_app.operations_answers import Refused
from function_app.runs import Run, Stage

WHO = "alice"


def ask(run_id: str, action: Any) -> Stage | None:
    """Ask it of a run; the stage that it was in, None when it cannot be asked (now)."""
    store = advance.store()
    found = store.get(run_id)
    try:
        if found is None or operations_runs.verdict(found[0], action) != "ask":
            return None
        operations_runs.ask(store, run_id, action, WHO, "as the schedule says")
    except Refused:
        return None
    return found[0].stage


def retire(model: str) -> str:
    """Take the model out of service; the id of the run that served, "" when none can be retired (now)."""
    try:
        run, _ = operations_models.retire(advance.store(), model, WHO)
    except Refused:
        return ""
    return run.id if run.stage == Stage.LIVE else ""


def roll_back(model: str) -> str:
    """Have the model that served before serve again; the id of the run that does it, "" when that cannot be (now)."""
    try:
        run, pending = rollback.roll_back(advance.store(), model, "", WHO)
    except Refused:
        return ""
    return run.id if pending else ""


def runs_of(model: str) -> list[Run]:
    """All records."""
    store = advance.store()
    found = [store.get(summary.id) for summary in store.summaries(f"{model}-")]
    return [each[0] for each in found if each]
