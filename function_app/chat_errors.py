"""What the caller of the chat API is told when something goes wrong."""

import logging
import traceback

from .chat_keys import KeyRefused
from .entra_signing_keys import IssuerUnavailable
from .entra_tokens import NotAssigned
from .flow_runner import FlowError
from .live import LiveModelsUnavailable
from .openai_api import ApiError, flow_failed
from .settings import SettingsError

log = logging.getLogger(__name__)


def as_api_error(exception: Exception, request_id: str) -> ApiError:
    """Return the answer for ``exception``. One that nobody foresaw is logged with its traceback."""
    match exception:
        case ApiError():
            return exception
        case KeyRefused():
            error = ApiError(401, str(exception), code="invalid_api_key")
            error.headers["WWW-Authenticate"] = "Bearer"  # which RFC 9110 asks of every 401
            return error
        case NotAssigned():
            return ApiError(403, str(exception), code="role_missing")
        case IssuerUnavailable():
            return ApiError(503, str(exception), type="server_error", code="sign_in_unavailable", retry_after="5")
        case LiveModelsUnavailable():
            return ApiError(503, str(exception), type="server_error", code="storage_unavailable", retry_after="5")
        case SettingsError():
            log.error("chat request=%s setting=%r", request_id, str(exception))
            return ApiError(500, str(exception), type="server_error", code="misconfigured")
        case FlowError() as flow:
            error = flow_failed(flow.kind, str(flow), flow.upstream_status, flow.retry_after, flow.param, flow.code)
            log.log(
                logging.INFO if error.status in (400, 413) else logging.WARNING,  # those are the caller's to mend
                "chat request=%s flow=%s upstream_status=%s cause=%s",
                request_id, flow.kind, flow.upstream_status, flow.cause,
            )  # fmt: skip
            return error
        case _:
            # Only where it happened: the text of an unforeseen exception may quote the prompt.
            where = "".join(traceback.format_tb(exception.__traceback__))
            log.error("chat request=%s bug=%s\n%s", request_id, type(exception).__name__, where)
            message = f"The server failed; its log has the reason under request {request_id}."
            return ApiError(500, message, type="server_error", code="internal_error")
