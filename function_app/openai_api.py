"""OpenAI's wire format: what a chat request may hold, what answers, errors and streams look like. No I/O."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec

from .openai_messages import FieldError, read_messages
from .openai_parameters import READ_ELSEWHERE, check_names, check_parameters

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_NESTING = 32
MAX_PARTS = 100_000  # objects and lists: a body full of {} would keep all other callers waiting for a second
DONE = b"data: [DONE]\n\n"


class ApiError(Exception):
    """An answer that is not 200, in OpenAI's shape; the message is shown to the caller."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or ""
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}
        # It may be another server's: nothing that would end the header, or that no header can hold.
        usable = retry_after and retry_after.isascii() and retry_after.isprintable()
        self.headers = {"Retry-After": retry_after} if retry_after and usable else {}


@dataclass(frozen=True)
class ChatRequest:
    """A request that has been checked. ``parameters`` are the fields that the endpoint gets besides the messages."""

    model: str
    messages: list[dict[str, Any]]
    parameters: dict[str, Any]
    stream: bool
    include_usage: bool


def read_chat_request(body: bytes) -> ChatRequest:
    """Parse and check the body of ``POST v1/chat/completions``.

    A field that is null counts as not given, as with OpenAI. None is dropped without a word (openai_parameters.py).
    Raises ApiError (400 or 413) that names the field.
    """
    if len(body) > MAX_BODY_BYTES:
        raise ApiError(
            413, f"The request is larger than {MAX_BODY_BYTES // 1024 // 1024} MiB.", code="request_too_large"
        )
    try:
        return _read_fields(_read_object(body))
    except FieldError as error:
        raise ApiError(400, str(error), param=error.param, code=error.code) from None


def _read_fields(fields: dict[str, Any]) -> ChatRequest:
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise FieldError("model", "must be the name of a model; GET v1/models lists them")
    stream = fields.get("stream", False)
    if not isinstance(stream, bool):
        raise FieldError("stream", "must be true or false")
    parameters = check_parameters({name: value for name, value in fields.items() if name not in READ_ELSEWHERE})
    include_usage = _read_stream_options(fields.get("stream_options"), stream)
    if stream:
        # Always asked for, since the log wants the counts; the caller gets them only if it asked too.
        parameters["stream_options"] = {"include_usage": True}
    return ChatRequest(model, read_messages(fields.get("messages")), parameters, stream, include_usage)


def _read_object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise ApiError(400, "The body is empty; it must be a JSON object.", code="invalid_json")
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise ApiError(400, f"The JSON is nested more than {MAX_NESTING} deep.", code="invalid_json") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(
            400, 'The body must be a JSON object such as {"model": …, "messages": […]}.', code="invalid_json"
        )
    _check_tree(value, "", MAX_NESTING, count())
    check_names(value)
    return {name: part for name, part in value.items() if part is not None}


def _check_tree(value: Any, path: str, levels: int, parts: Iterator[int]) -> None:
    """Refuse JSON that is too deep or has too many ``parts``, and keys that Prompt Flow would follow.

    Prompt Flow replaces an object such as {"data:image/png;path": "…"}, wherever it is in a flow's input, by the file
    (or, with ;url, by the download) that it names: from a request that would be reading the server's own files.
    """
    if levels == 0:
        raise ApiError(400, f"The JSON is nested more than {MAX_NESTING} deep.", code="invalid_json")
    if next(parts) > MAX_PARTS:
        raise ApiError(400, f"The JSON has more than {MAX_PARTS} objects and lists.", code="invalid_json")
    if isinstance(value, dict):
        for key, part in value.items():
            if key.startswith("data:"):
                raise FieldError(path or key[:100], 'must not hold keys that start with "data:"')
            if isinstance(part, dict | list):
                _check_tree(part, f"{path}.{key}" if path else key, levels - 1, parts)
    else:
        for index, part in enumerate(value):
            if isinstance(part, dict | list):
                _check_tree(part, f"{path}[{index}]", levels - 1, parts)


def _read_stream_options(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise FieldError("stream_options", "is allowed only with stream: true")
    if not isinstance(options, dict):
        raise FieldError("stream_options", 'must be an object such as {"include_usage": true}')
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation"):
            raise FieldError(f"stream_options.{name[:100]}", "is not a field that this API knows", "unknown_parameter")
        if value is not None and not isinstance(value, bool):
            raise FieldError(f"stream_options.{name}", "must be true or false")
    if options.get("include_obfuscation"):
        raise FieldError("stream_options.include_obfuscation", "must be false: nothing is obfuscated here")
    return bool(options.get("include_usage"))


def model_not_found(model: str, live: list[str], *, limited: bool = False) -> ApiError:
    """The answer to a name that no live model has. ``live``: those that the caller sees; ``limited``: there may be
    others."""
    if not live and limited:
        text = f"The model {model[:100]!r} is not live, nor is any other that this key may use."
        return ApiError(404, text, param="model", code="model_not_found")
    if not live:
        text = "No model is live yet. Drop a JSONL file into the datasets container; a model is live minutes later."
        return ApiError(404, text, param="model", code="model_not_found")
    text = f"The model {model[:100]!r} is not live. Live models: {', '.join(live)}."
    return ApiError(404, text, param="model", code="model_not_found")


def unknown_url(method: str, path: str) -> ApiError:
    """The answer to a call that this API does not have."""
    text = (
        f"There is no {method} {path[:100]} here. There are POST /api/v1/chat/completions, GET /api/v1/models and GET"
        " /api/v1/models/<model>; the base URL of a client ends in /api/v1."
    )
    return ApiError(404, text, code="unknown_url")


def flow_failed(
    kind: str,
    message: str,
    upstream_status: int | None = None,
    retry_after: str | None = None,
    param: str | None = None,
    code: str | None = None,
) -> ApiError:
    """What the caller is told when the flow failed; the arguments are those of flow/endpoint_errors.py."""
    if kind == "refused" and upstream_status in (400, 413, 422):
        return ApiError(413 if upstream_status == 413 else 400, message, param=param, code=code)
    if kind == "refused" and upstream_status == 429:
        return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=retry_after)
    if kind == "timeout" or upstream_status in (408, 504):
        return ApiError(504, message, type="server_error", code="endpoint_timeout")
    if kind == "not_configured" and code:  # what it is that nobody has configured, or that does not answer
        return ApiError(503, message, type="server_error", code=code, retry_after=retry_after)
    if kind in ("unreachable", "not_configured") or upstream_status == 503:
        return ApiError(503, message, type="server_error", code="endpoint_unavailable", retry_after=retry_after)
    if upstream_status in (401, 403, 404):
        # The caller's key and path were right; it is this app that the endpoint turned away.
        message = f"The model's endpoint turned this app away with {upstream_status}; its log says more."
    return ApiError(502, message, type="server_error", code="endpoint_failed")


def model_object(model: str, created: int, details: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of ``v1/models``. ``created`` is in seconds since 1970; ``details`` are extra fields."""
    return {"id": model, "object": "model", "created": created, "owned_by": "fine-tuned", **details}


class ChunkWriter:
    """Writes a stream as server-sent events: a role first, the deltas, the finish, usage if asked for.

    ``model``: the name that each chunk carries, as the caller asked for it.
    """

    def __init__(self, include_usage: bool, model: str) -> None:
        self.usage: dict[str, Any] = {}
        self._include_usage = include_usage
        self._model = model
        self._begun = False

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        """Return the event for one chat.completion.chunk; nothing for one that the caller did not ask for."""
        chunk["model"] = self._model
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = usage
        if not chunk.get("choices"):
            return _event(chunk) if usage and self._include_usage else b""
        if not self._include_usage:
            chunk.pop("usage", None)
        if not self._begun:
            self._begun = True
            choice = chunk["choices"][0]
            delta = choice.get("delta")
            choice["delta"] = {"role": "assistant", **(delta if isinstance(delta, dict) else {})}
        return _event(chunk)

    @staticmethod
    def error(error: ApiError) -> bytes:
        """Return the event that tells of a failure after the answer has begun."""
        return _event(error.body)


def _event(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def to_json(value: Any) -> bytes:
    """Return JSON in ASCII, so that no string that a model may produce (half a surrogate pair) fails to encode."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")
