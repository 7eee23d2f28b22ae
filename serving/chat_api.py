"""The OpenAI chat protocol over the engine: `GET /health`, `GET /v1/models`, `POST /v1/chat/completions`.

`transformers serve` has these routes too, on the same engine. It is not used as it is, because version 5.23 refuses
every model name but its own folder's, samples all requests like the first one, goes on generating for a client that has
left, never sends `data: [DONE]`, puts usage where OpenAI does not, takes its request ids from the client (two alike
stop an answer), dies of a prompt longer than its cache, and lets anyone load or unload models.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from engine import Engine, Piece
from request import ChatRequest, RequestError, parse_request
from sampling import Sampling
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

log = logging.getLogger("serving")


def build_app(engine: Engine, model_name: str) -> Starlette:
    """Return the ASGI application; it accepts connections once the model has answered a first time."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engine.start()
        greedy = Sampling(max_new_tokens=2, temperature=0, top_p=1)
        async for _ in engine.answer("warm-up", engine.prompt_ids([{"role": "user", "content": "Hello"}]), greedy):
            pass
        log.info("ready model=%s context_length=%d", model_name, engine.context_length)
        yield
        engine.stop()

    async def health(_: Request) -> Response:
        alive = engine.alive()
        return JSONResponse({"status": "ok" if alive else "unhealthy"}, 200 if alive else 503)

    async def models(_: Request) -> Response:
        card = {"id": model_name, "object": "model", "created": 0, "owned_by": "owner"}
        return JSONResponse({"object": "list", "data": [card | {"context_length": engine.context_length}]})

    async def chat(request: Request) -> Response:
        try:
            chat_request = parse_request(await request.body(), engine, model_name)
        except RequestError as error:
            return _error(error.status, str(error), error.param, error.code)
        if not engine.alive():
            return _error(503, "the model is not available", kind="server_error")
        answer = _Answer(chat_request, engine)
        if chat_request.stream:
            return StreamingResponse(answer.events(), media_type="text/event-stream")
        return await answer.whole(request)

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class _Answer:
    """One answer, on its way to one client."""

    def __init__(self, request: ChatRequest, engine: Engine) -> None:
        self._request = request
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._pieces = _until_stop(engine.answer(self._id, request.prompt, request.sampling), request.stop)

    async def whole(self, request: Request) -> Response:
        """Return the answer in one piece, or give it up when the client has gone."""
        collected = asyncio.ensure_future(self._collect())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({collected, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not collected.done():
                collected.cancel()
        if not collected.done():
            return Response(status_code=499)  # nginx's number for a client that closed; nobody reads it
        try:
            text, last = collected.result()
        except RuntimeError:
            log.exception("failed id=%s", self._id)
            return _error(500, "the model could not answer", kind="server_error")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish_reason}
        return JSONResponse(self._body("chat.completion", [choice]) | {"usage": self._usage(last)})

    async def _collect(self) -> tuple[str, Piece]:
        pieces = [piece async for piece in self._pieces]
        return "".join(piece.text for piece in pieces), pieces[-1]

    async def events(self) -> AsyncIterator[str]:
        """Yield the server-sent events of the answer; an error in its middle is an event, too."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            async with contextlib.aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    if piece.text:
                        yield self._chunk({"content": piece.text})
            yield self._chunk({}, piece.finish_reason)
            if self._request.include_usage:
                yield _event(self._body("chat.completion.chunk", []) | {"usage": self._usage(piece)})
            yield "data: [DONE]\n\n"
        except RuntimeError:
            log.exception("failed id=%s", self._id)
            yield _event({"error": _error_body("the model could not answer", kind="server_error")})

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        body = self._body("chat.completion.chunk", [choice])
        return _event(body | {"usage": None} if self._request.include_usage else body)

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
            "choices": choices,
        }

    def _usage(self, last: Piece) -> dict[str, int]:
        prompt = len(self._request.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": last.tokens, "total_tokens": prompt + last.tokens}


async def _until_stop(pieces: AsyncIterator[Piece], stop: list[str]) -> AsyncIterator[Piece]:
    """End the answer before the first of ``stop``; what might become one is held back until it is clear."""
    held = ""
    async with contextlib.aclosing(pieces):  # type: ignore[type-var]
        async for piece in pieces:
            held += piece.text
            found = [at for at in (held.find(text) for text in stop) if at >= 0]
            if found:
                yield Piece(held[: min(found)], piece.tokens, "stop")
                return
            keep = 0
            if not piece.finish_reason:
                keep = max((n for text in stop for n in range(1, len(text)) if held.endswith(text[:n])), default=0)
            ready, held = held[: len(held) - keep], held[len(held) - keep :]
            yield Piece(ready, piece.tokens, piece.finish_reason)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _error_body(
    message: str, param: str | None = None, code: str | None = None, kind: str = "invalid_request_error"
) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


def _error(status: int, *body: str | None, **kind: str) -> JSONResponse:
    return JSONResponse({"error": _error_body(*body, **kind)}, status)  # type: ignore[arg-type]
