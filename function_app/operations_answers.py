"""How the operations API answers: its errors, the pages of its lists, and what a request's body may hold."""

import logging
import traceback
from typing import Any

import msgspec
from azure.core.exceptions import AzureError, HttpResponseError

from .chat_keys import KeyRefused
from .errors import StepError
from .settings import SettingsError

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024
MAX_NOTE = 500  # characters; a note becomes part of the run's history
DEFAULT_PAGE, LARGEST_PAGE = 50, 200


class Refused(Exception):
    """An answer that is not 2xx. ``state``: what forbids it, a stage or a deployment's name; ``more``: further fields
    of the error, such as the id of the run that is in the way."""

    def __init__(self, status: int, code: str, message: str, state: str | None = None, **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.body = {"error": {"message": message, "code": code, "state": state, **more}}
        self.headers = {"Retry-After": "5"} if status == 503 else {}


def not_found(what: str, mend: str) -> Refused:
    return Refused(404, "not_found", f"There is no {what}; {mend}.")


def as_refusal(exception: Exception, request_id: str) -> Refused:
    """The answer for ``exception``. One that nobody foresaw is logged with its traceback."""
    match exception:
        case Refused():
            return exception
        case KeyRefused():
            return Refused(401, "invalid_api_key", str(exception))
        case SettingsError():
            log.error("operations request=%s setting=%r", request_id, str(exception))
            return Refused(500, "misconfigured", str(exception))
        case StepError():  # a live record that somebody has changed
            return Refused(409, "unreadable", str(exception))
        case TimeoutError():
            return Refused(503, "timeout", "Azure takes too long to answer; what was asked may yet be done. Ask again.")
        case HttpResponseError(status_code=409 | 412):
            return Refused(503, "busy", "Azure is changing this at the moment; ask again.")
        case HttpResponseError(status_code=400 | 401 | 403 | 404 as status):
            reason = (exception.message or "").strip().partition("\n")[0][:300]
            log.warning("operations request=%s azure_status=%d", request_id, status)
            return Refused(502, "azure_refused", f"Azure refused ({status}): {reason}")
        case AzureError():
            log.warning("operations request=%s azure=%s", request_id, type(exception).__name__)
            message = f"Azure did not answer as it should ({type(exception).__name__}); ask again."
            return Refused(503, "azure_unavailable", message)
        case _:
            # Only where it happened: the text of an unforeseen exception may quote a note.
            where = "".join(traceback.format_tb(exception.__traceback__))
            log.error("operations request=%s bug=%s\n%s", request_id, type(exception).__name__, where)
            message = f"The server failed; its log has the reason under request {request_id}."
            return Refused(500, "internal_error", message)


def page_size(given: str | None) -> int:
    """The query's ``limit``. Raises Refused."""
    if given is None or given == "":
        return DEFAULT_PAGE
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= LARGEST_PAGE):
        raise Refused(400, "invalid_limit", f"limit must be a whole number from 1 to {LARGEST_PAGE}.")
    return int(given)


def read_body(body: bytes, *known: str) -> dict[str, str]:
    """The texts of a request's body, which may be empty: of the fields that are ``known``. Raises Refused."""
    if len(body) > MAX_BODY_BYTES:
        raise Refused(413, "request_too_large", f"The request is larger than {MAX_BODY_BYTES // 1024} KiB.")
    if not body.strip():
        return {}
    such = ", ".join(f'"{name}": "…"' for name in known)
    form = f"a JSON object such as {{{such}}}, or left out" if known else "empty"
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(400, "invalid_json", f"The body is no JSON; it must be {form}.") from None
    if not isinstance(fields, dict):
        raise Refused(400, "invalid_body", f"The body must be {form}.")
    for name, value in fields.items():
        if name not in known:
            raise Refused(400, "unknown_field", f"The field {name[:40]!r} is not known; the body must be {form}.")
        if value is not None and not isinstance(value, str):
            raise Refused(400, "invalid_field", f"The field {name} must be a text.")
    return {name: value for name, value in fields.items() if value is not None}


def read_note(fields: dict[str, str]) -> str:
    """A person's remark as one line. Raises Refused when it is too long."""
    note = " ".join(fields.get("note", "").split())
    if len(note) > MAX_NOTE:
        raise Refused(400, "invalid_field", f"The note has {len(note)} characters; {MAX_NOTE} is the limit.")
    return note


def page(name: str, rows: list[Any], limit: int, after: str) -> dict[str, Any]:
    """``{name: [...], "after": …}``: at most ``limit`` of the rows, and where the next page begins, null on the last.

    ``rows`` has one more than ``limit`` when there is more; ``after`` is the cursor behind the last one shown.
    """
    return {name: rows[:limit], "after": after if len(rows) > limit else None}
