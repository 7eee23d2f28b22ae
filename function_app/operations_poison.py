"""The messages that the app could not work on, for operators to look at and to send again."""

from typing import Any

from . import poison
from .operations_answers import Refused, not_found, page
from .runs import Conflict


def list_poison(limit: int, after: str) -> dict[str, Any]:
    """A page of the kept messages, the latest first. Raises Refused."""
    kept = [each for each in poison.kept() if not after or str(each["name"]) < after]
    rows = sorted(kept, key=lambda each: str(each["name"]), reverse=True)[: limit + 1]
    return page("poison", rows, limit, str(rows[limit - 1]["name"]) if len(rows) > limit else "")


def replay(name: str, by: str) -> dict[str, Any]:
    """Send a kept message again. Raises Refused when there is none, or its run is being moved."""
    try:
        sent = poison.replay(name, by)
    except Conflict:
        raise Refused(503, "busy", "The message's run is being moved at this moment; ask again.") from None
    if not sent:
        raise not_found("kept message of this name", "GET operations/poison lists them; it may have been sent already")
    return {"name": name, "replayed": True}
