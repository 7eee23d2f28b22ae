"""Answers one chat request: by the flow, whole or as a stream of events, and once more elsewhere if need be."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from . import usage
from .callers import Caller, Place
from .chat_errors import as_api_error
from .chat_leaving import caller_left, unless_caller_leaves
from .chat_log import ChatLog
from .flow_runner import FlowError, FlowStream, flow_runner
from .live import live_models
from .model_choice import Choice, choose, not_live, pin_gone
from .openai_api import (
    DONE,
    MAX_BODY_BYTES,
    ApiError,
    ChatRequest,
    ChunkWriter,
    read_chat_request,
    to_json,
)
from .settings import settings

DROPPED = "dropped_messages"  # in an answer: how many messages of the history were left out (flow/finish.py)


async def answer_chat(req: Request, log: ChatLog, caller: Caller) -> Response:
    """Return the answer to a request that ``caller`` may make. Raises ApiError, FlowError and what they come from."""
    request = read_chat_request(await _read_body(req))
    log.stream = request.stream
    choice = await choose(request.model, caller)
    log.model = choice.live.model
    place = caller.take_place()
    try:
        answer = await unless_caller_leaves(req.receive, _ask(request, choice, caller))
        log.first_answer()
        usage.note(choice.live.model)
        if isinstance(answer, FlowStream):
            return await _stream(answer, request, log, place)
    except BaseException:
        place.leave()
        raise
    place.leave()
    answer["model"] = request.model
    if isinstance(counted := answer.get("usage"), dict):
        log.usage = counted
    log.write(200)
    return Response(to_json(answer), headers=_headers(answer), media_type="application/json")


async def _read_body(req: Request) -> bytes:
    body = bytearray()
    try:
        async for part in req.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                break  # read_chat_request says so
    except ClientDisconnect:
        raise caller_left() from None
    return bytes(body)


async def _ask(request: ChatRequest, choice: Choice, caller: Caller) -> dict[str, Any] | FlowStream:
    try:
        return await flow_runner().run(flow_inputs(request, choice))
    except FlowError as error:
        if choice.deployment and error.upstream_status == 404:
            raise await pin_gone(choice, caller) from error
        elsewhere = await _elsewhere(request, choice, caller, error)
        if elsewhere is None:
            raise
        return await flow_runner().run(elsewhere)


def flow_inputs(request: ChatRequest, choice: Choice) -> dict[str, Any]:
    """The flow's inputs. Not the key of an endpoint that has one, only whose key it is: inputs are traced.

    A deployment that takes another payload than its neighbours is addressed by name, whatever the traffic.
    """
    live = choice.live
    return {
        "messages": request.messages,
        "parameters": request.parameters,
        "model": live.model,
        "stream": request.stream,
        "endpoint": {
            "scoring_uri": live.scoring_uri,
            "deployment": choice.deployment or (live.deployment if live.wire else ""),
            "key_of": f"{settings().workspace_id}/serverlessEndpoints/{live.endpoint}" if live.auth == "key" else "",
            "wire": live.wire,
        },
        "rules": {"context_length": live.context_length or 0, **msgspec.structs.asdict(live.chat)},
    }


async def _elsewhere(request: ChatRequest, choice: Choice, caller: Caller, error: FlowError) -> dict[str, Any] | None:
    """What to ask instead when nothing was answered yet; None when that would be the same again. Raises ApiError when
    the model has been retired a moment ago.

    A model may have moved to another endpoint, and the one that it leaves is deleted. Or the traffic has led to a
    challenger that is out of order: the deployment that the live record names still serves. What is pinned has no
    elsewhere.
    """
    if choice.pinned or error.final or not _may_be_well_elsewhere(error):
        return None
    now = await live_models().find_again(choice.live.model)
    if now is None:
        raise await not_live(choice.live.model, caller) from error
    before, inputs = flow_inputs(request, choice), flow_inputs(request, Choice(now))
    if inputs == before:
        inputs = flow_inputs(request, Choice(now, now.deployment))
    if inputs == before:
        return None
    inputs["endpoint"]["repeat"] = False  # it is being repeated now
    return inputs


def _may_be_well_elsewhere(error: FlowError) -> bool:
    # What a caller sees of an endpoint that is being deleted, or is gone; and of a server that fails.
    return error.kind == "unreachable" or error.upstream_status in (401, 403, 404, 410, 424, 500, 502, 503)


def _headers(answer: Mapping[str, Any]) -> dict[str, str]:
    dropped = answer.get(DROPPED)
    # A number: were it the endpoint's own field, it could hold whatever ends a header.
    return {"x-dropped-messages": str(dropped)} if isinstance(dropped, int) else {}


async def _stream(answer: FlowStream, request: ChatRequest, log: ChatLog, place: Place) -> Response:
    headers = {"Cache-Control": "no-cache", **_headers(answer.first)}
    events = _events(answer, ChunkWriter(request.include_usage, request.model), log, place)
    await anext(events)  # from here on its finally clause runs, even if the caller is already gone
    return _ClosingStream(events, media_type="text/event-stream", headers=headers)


async def _events(chunks: FlowStream, writer: ChunkWriter, log: ChatLog, place: Place) -> AsyncGenerator[bytes, None]:
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
        place.leave()
        await chunks.aclose()
        log.usage = writer.usage
        log.write(status, code)


class _ClosingStream(StreamingResponse):  # type: ignore[misc]
    """Closes its events, and so the connection to the endpoint, as soon as the caller is gone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        try:
            await unless_caller_leaves(receive, self.stream_response(send))
        except ApiError:
            pass  # the caller has left, which _events has logged
        finally:
            await self.body_iterator.aclose()
