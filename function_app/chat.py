"""HTTP: chat in OpenAI's format, the list of live models, and the page to chat on."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Any

import azure.functions as func
from azurefunctions.extensions.http.fastapi import HTMLResponse, Request, Response, StreamingResponse

from . import usage
from .chat_errors import as_api_error
from .chat_keys import check_key
from .chat_log import ChatLog
from .chat_page import read_page
from .flow_runner import FlowError, FlowStream, flow_runner
from .live import LiveModel, live_models
from .openai_api import (
    DONE,
    MAX_BODY_BYTES,
    ChatRequest,
    ChunkWriter,
    model_not_found,
    model_object,
    read_chat_request,
    to_json,
)
from .settings import settings

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

blueprint = func.Blueprint()


@blueprint.function_name("chat_completions")
@blueprint.route(route="v1/chat/completions", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_completions(req: Request) -> Response:
    """Answer a chat request with the live model that it names, whole or as a stream of events."""
    return await _answer(req, _chat)


@blueprint.function_name("list_models")
@blueprint.route(route="v1/models", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def list_models(req: Request) -> Response:
    """List the live models."""
    return await _answer(req, _list_models)


@blueprint.function_name("get_model")
@blueprint.route(route="v1/models/{model}", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def get_model(req: Request) -> Response:
    """Describe one live model."""
    return await _answer(req, _get_model)


@blueprint.function_name("chat_page")
@blueprint.route(route="chat", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_page(req: Request) -> Response:  # noqa: ARG001
    """Serve the page. It holds no secret: the visitor types the key in."""
    page, headers = read_page()
    return HTMLResponse(page, headers=headers)


async def _answer(req: Request, route: Callable[[Request, ChatLog], Awaitable[Response]]) -> Response:
    """Check the key, run ``route``, and turn whatever goes wrong into OpenAI's shape."""
    log = ChatLog(REQUEST_ID.fullmatch(req.headers.get("x-request-id", "")))
    try:
        log.key = check_key(req.headers.get("authorization", ""), settings().chat_api_keys)
        response = await route(req, log)
    except Exception as exception:
        error = as_api_error(exception, log.request_id)
        log.write(error.status, error.code)
        response = _json(error.body, error.status, error.headers)
    response.headers["x-request-id"] = log.request_id
    return response


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status_code=status, headers=headers, media_type="application/json")


async def _chat(req: Request, log: ChatLog) -> Response:
    request = read_chat_request(await _read_body(req))
    log.stream = request.stream
    live = await _find(request.model)
    log.model = live.model
    try:
        answer = await flow_runner().run(_flow_inputs(request, live))
    except FlowError as error:
        elsewhere = await _elsewhere(request, live, error)
        if elsewhere is None:
            raise
        answer = await flow_runner().run(elsewhere)
    log.first_answer()
    usage.note(live.model)
    if isinstance(answer, FlowStream):
        events = _events(answer, ChunkWriter(request.include_usage), log)
        await anext(events)  # from here on its finally clause runs, even if the caller is already gone
        return _ClosingStream(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    log.usage = answer.get("usage") or {}
    log.write(200)
    return _json(answer)


def _flow_inputs(request: ChatRequest, live: LiveModel) -> dict[str, Any]:
    """The flow's inputs. Not the key of an endpoint that has one, only whose key it is: inputs are traced.

    A deployment that takes another payload than its neighbours is addressed by name, whatever the traffic.
    """
    return {
        "messages": request.messages,
        "parameters": request.parameters,
        "model": live.model,
        "scoring_uri": live.scoring_uri,
        "key_of": f"{settings().workspace_id}/serverlessEndpoints/{live.endpoint}" if live.auth == "key" else "",
        "wire": live.wire,
        "deployment": live.deployment if live.wire else "",
        "stream": request.stream,
    }


async def _elsewhere(request: ChatRequest, live: LiveModel, error: FlowError) -> dict[str, Any] | None:
    """What to ask instead when nothing was answered yet; None when that would be the same again. Raises ApiError when
    the model has been retired a moment ago.

    A model may have moved to another endpoint, and the one that it leaves is deleted. Or the traffic has led to a
    challenger that is out of order: the deployment that the live record names still serves.
    """
    if not _may_be_well_elsewhere(error):
        return None
    now = await live_models().find_again(live.model)
    if now is None:
        raise model_not_found(live.model, sorted(await live_models().all())) from error
    before, inputs = _flow_inputs(request, live), _flow_inputs(request, now)
    if inputs == before:
        inputs = {**inputs, "deployment": now.deployment}
    return inputs if inputs != before else None


def _may_be_well_elsewhere(error: FlowError) -> bool:
    # What a caller sees of an endpoint that is being deleted, or is gone; and of a server that fails.
    return error.kind == "unreachable" or error.upstream_status in (401, 403, 404, 410, 424, 500, 502, 503)


async def _read_body(req: Request) -> bytes:
    body = bytearray()
    async for part in req.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            break  # read_chat_request says so
    return bytes(body)


async def _find(name: str) -> LiveModel:
    live = await live_models().find(name)
    if live is None:
        raise model_not_found(name, sorted(await live_models().all()))
    return live


async def _events(chunks: FlowStream, writer: ChunkWriter, log: ChatLog) -> AsyncGenerator[bytes, None]:
    status, code = 499, "client_closed"  # unless one of the ends below is reached
    try:
        yield b""
        async for chunk in chunks:
            if event := writer.chunk(chunk):
                yield event
        status, code = 200, ""
        yield DONE
    except Exception as exception:
        error = as_api_error(exception, log.request_id)
        status, code = error.status, error.code
        yield ChunkWriter.error(error)
    finally:
        await chunks.aclose()
        log.usage = writer.usage
        log.write(status, code)


class _ClosingStream(StreamingResponse):  # type: ignore[misc]
    """Closes its events, and so the connection to the endpoint, as soon as the caller is gone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()


async def _list_models(req: Request, log: ChatLog) -> Response:  # noqa: ARG001
    models = await live_models().all()
    log.write(200)
    return _json({"object": "list", "data": [_describe(live) for _, live in sorted(models.items())]})


async def _get_model(req: Request, log: ChatLog) -> Response:
    live = await _find(req.path_params["model"])
    log.model = live.model
    log.write(200)
    return _json(_describe(live))


def _describe(live: LiveModel) -> dict[str, Any]:
    try:
        created = int(datetime.fromisoformat(live.since).timestamp())
    except ValueError:
        created = 0
    details = {"base_model": live.base_model, "context_length": live.context_length, "run_id": live.run_id}
    return model_object(live.model, created, details)
