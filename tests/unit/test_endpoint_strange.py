"""An endpoint whose answers are not what they should be: no caller gets a 500, and nothing of it gets into a header."""

import asyncio
import json
import sys
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web
from chat_support import World, event

HELLO: Any = [{"role": "user", "content": "Hello"}]
CHOICE: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
DEEP = b'{"choices": ' + b"[" * 100_000


def answer_with(world: World, body: bytes, **headers: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    world.endpoint.handler = answer


async def post(world: World, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.post(
            f"{world.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {world.key}"},
            json={"model": "support", "messages": HELLO, **fields},
        )


NO_ANSWERS = [
    b"", b"[]", b"null", b"\xff\xfe", b'{"choices": {}}', b'{"choices": [null]}', b'{"choices": [{"index": 0}]}',
    b'{"choices": [{"message": "Hi"}]}', DEEP,
]  # fmt: skip
NO_CHUNKS = [
    b"data: []\n\n", b"data: {", b"data: \xff\n\n", b'data: {"choices": 7}\n\n', b'data: {"choices": {"0": {}}}\n\n',
    b'data: {"choices": ["Hi"]}\n\n', b"data: " + DEEP + b"\n\n", b": nothing else\n\n", b"data: [DONE]\n\n",
    b'data: {"error": {}}\n\n', b"data: " + b"x" * (3 << 20),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "bodies"), [(False, NO_ANSWERS), (True, NO_CHUNKS)])
async def test_an_answer_that_is_none_is_a_502(world: World, stream: bool, bodies: list[bytes]) -> None:
    for body in bodies:
        answer_with(world, body)
        answer = await post(world, stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "endpoint_failed"), body[:40]


async def test_a_count_of_tokens_that_is_none_does_not_cost_the_answer(world: World) -> None:
    for usage in ("a few", [3], 7, None):
        answer_with(world, json.dumps({"choices": [CHOICE], "usage": usage}).encode())
        answer = await post(world)
        assert answer.status_code == 200, usage
        assert answer.json()["choices"] == [CHOICE]


async def test_the_first_event_has_a_role_whatever_the_endpoint_sent(world: World) -> None:
    end = event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    strange: list[dict[str, Any]] = [{"delta": None}, {}, {"delta": "Hi"}, {"delta": {"content": "Hi"}}]
    for choice in strange:
        answer_with(world, event([{"index": 0, **choice}], error=None, usage="none") + end + b"data: [DONE]\n\n")
        stream = await world.client().chat.completions.create(model="support", messages=HELLO, stream=True)
        chunks = [each async for each in stream]
        assert [each.choices[0].delta.role for each in chunks] == ["assistant", None]
    assert chunks[0].choices[0].delta.content == "Hi"


async def test_numbers_that_are_not_json_do_not_reach_the_caller(world: World) -> None:
    """Python's servers write -Infinity for the logarithm of nothing; a client in JavaScript could not read it."""
    logprobs = {"content": [{"token": "Hi", "logprob": float("-inf"), "top_logprobs": []}, {"logprob": float("nan")}]}
    answer_with(world, json.dumps({"choices": [{**CHOICE, "logprobs": logprobs}]}).encode())
    answer = await post(world, logprobs=True)
    assert b"Infinity" not in answer.content
    assert b"NaN" not in answer.content
    content = answer.json()["choices"][0]["logprobs"]["content"]
    assert [each["logprob"] for each in content] == [-9999.0, None]


async def test_what_the_endpoint_says_cannot_end_a_header(world: World) -> None:
    evil = "1\r\nSet-Cookie: a=b"
    answer_with(world, json.dumps({"choices": [CHOICE], "dropped_messages": evil}).encode())
    answer = await post(world)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert "x-dropped-messages" not in answer.headers

    async def busy(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=429, headers={"Retry-After": "später"})

    world.endpoint.handler = busy
    answer = await post(world)
    assert answer.status_code == 429
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_that_comes_in_pieces_is_read_whole(world: World, stream: bool) -> None:
    """As a server sends it that repeats a long input. In part it would be no JSON, and its code would be lost."""
    text = json.dumps({"error": {"message": "too long", "code": "context_length_exceeded", "input": "x" * 20_000}})

    async def refuse(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        for start in range(0, len(text), 5000):
            await response.write(text[start : start + 5000].encode())
            await asyncio.sleep(0.02)
        return response

    world.endpoint.handler = refuse
    with pytest.raises(openai.BadRequestError, match="too long") as error:
        await world.client().chat.completions.create(model="support", messages=HELLO, stream=stream)
    assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize("order", [("abort", "503", "503"), ("reset", "abort", "abort"), ("503", "abort", "abort")])
async def test_whatever_goes_wrong_a_request_is_sent_twice_at_most(world: World, order: tuple[str, ...]) -> None:
    await world.client().chat.completions.create(model="support", messages=HELLO)
    before = len(world.endpoint.bodies)

    async def fail(request: web.Request) -> web.StreamResponse:
        how = order[len(world.endpoint.bodies) - before - 1]
        if how == "503":
            return web.json_response({}, status=503)
        assert request.transport
        if how == "reset":
            _linger_not(request.transport)
        request.transport.abort()
        return web.Response()

    world.endpoint.handler = fail
    assert (await post(world)).status_code == 503
    assert len(world.endpoint.bodies) == before + 2


async def test_a_request_that_was_being_worked_on_is_not_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.client().chat.completions.create(model="support", messages=HELLO)
    before = len(world.endpoint.bodies)
    monkeypatch.setattr(sys.modules["endpoint"], "REPEAT_SECONDS", 0.05)

    async def die(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        assert request.transport
        request.transport.abort()
        return web.Response()

    world.endpoint.handler = die
    answer = await post(world)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "endpoint_unavailable")
    assert len(world.endpoint.bodies) == before + 1


def _linger_not(transport: Any) -> None:
    """Closing the connection then resets it, which the other side sees as another error."""
    import socket
    import struct

    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
