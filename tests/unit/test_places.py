"""A caller has so many answers at a time as its key says, and no place is ever lost, however callers leave."""

import asyncio
import json
import random

import aiohttp
import openai
import pytest
from aiohttp import web
from azurefunctions.extensions.http.fastapi import Request
from chat_support import Allow, World, event

from function_app import callers, chat
from function_app.callers import Caller, identify
from function_app.chat_answer import answer_chat
from function_app.chat_leaving import unless_caller_leaves

HELLO = [{"role": "user", "content": "a secret prompt"}]
SCOPE = {"type": "http", "method": "POST", "path": "/", "query_string": b""}


async def ask(world: World, stream: bool = False) -> object:
    return await world.client().chat.completions.create(model="support", messages=HELLO, stream=stream)  # type: ignore[call-overload]


def chat_body(**more: object) -> bytes:
    return json.dumps({"model": "support", "messages": HELLO, **more}).encode()


async def test_one_answer_too_many_is_told_to_come_back_and_may_once_another_has_ended(
    world: World, allow: Allow
) -> None:
    others = world.key
    allow(concurrency=2)
    release = asyncio.Event()

    async def held(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event([{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]))
        await release.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    world.endpoint.handler = held
    first, second = [await ask(world, stream=True) for _ in range(2)]
    for stream in (True, False):
        with pytest.raises(openai.RateLimitError, match=r"2 answers under way, and may have 2 at a time") as refused:
            await ask(world, stream=stream)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.response.headers["Retry-After"] == "1"
    world.key, limited = others, world.key
    await (await ask(world, stream=True)).close()  # type: ignore[attr-defined] # another's answers do not count
    world.key = limited
    await second.close()  # type: ignore[attr-defined]
    await until_answering(limited, 1)
    second = await ask(world, stream=True)
    release.set()
    for stream in (first, second):
        async for _ in stream:  # type: ignore[attr-defined]
            pass
    await until_answering(limited, 0)
    world.endpoint.handler = None
    for _ in range(3):
        await ask(world)
    assert (await identify(f"Bearer {limited}")).answering == 0


async def test_a_request_that_never_comes_to_an_answer_takes_no_place(world: World, allow: Allow) -> None:
    allow(concurrency=1)
    for model, messages in (("support", []), ("missing", HELLO)):
        with pytest.raises(openai.APIStatusError):
            await world.client().chat.completions.create(model=model, messages=messages)  # type: ignore[arg-type]
    world.endpoint.handler = broken
    for stream in (True, False):
        with pytest.raises(openai.InternalServerError):
            await ask(world, stream=stream)
    world.endpoint.handler = None
    await ask(world)


async def broken(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


@pytest.mark.parametrize("seed", range(3))
async def test_no_place_is_lost_however_the_callers_leave(world: World, allow: Allow, seed: int) -> None:
    allow(concurrency=8)
    world.endpoint.pause = 0.004
    chance = random.Random(seed)  # noqa: S311
    statuses: list[int] = []

    async def call(session: aiohttp.ClientSession) -> None:
        body = {"model": "support", "messages": HELLO, "stream": chance.random() < 0.7}
        headers = {"Authorization": f"Bearer {world.key}"}
        async with session.post(f"{world.url}/v1/chat/completions", json=body, headers=headers) as response:
            statuses.append(response.status)
            if chance.random() < 0.3:
                return  # with the answer half read
            await response.read()

    async with aiohttp.ClientSession() as session:
        for _ in range(6):
            calls = [asyncio.create_task(call(session)) for _ in range(16)]
            for each in calls:
                if chance.random() < 0.5:
                    asyncio.get_running_loop().call_later(chance.random() * 0.04, each.cancel)
            await asyncio.gather(*calls, return_exceptions=True)
    assert {200, 429} <= set(statuses)
    await until_answering(world.key, 0)
    for _ in range(8):
        await ask(world)


async def test_an_answer_that_nobody_takes_gives_its_place_back(world: World, allow: Allow) -> None:
    allow(concurrency=1)
    body = chat_body(stream=True)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {**SCOPE, "headers": [(b"authorization", f"Bearer {world.key}".encode())]}
    response = await chat._answer(Request(scope, receive), answer_chat)
    assert response.status_code == 200
    await until_answering(world.key, 1)
    del response  # as when the host finds that the client has gone before the first byte
    await until_answering(world.key, 0)


async def test_a_caller_who_has_left_is_let_go_before_the_answer_is_forgotten(world: World, allow: Allow) -> None:
    allow(concurrency=1)
    said = iter([{"type": "http.request", "body": chat_body(stream=True), "more_body": False}])

    async def receive() -> dict[str, object]:
        return next(said, {"type": "http.disconnect"})

    async def send(_: object) -> None:
        await asyncio.sleep(30)  # a connection that takes nothing

    scope = {**SCOPE, "headers": [(b"authorization", f"Bearer {world.key}".encode())]}
    response = await chat._answer(Request(scope, receive), answer_chat)
    await response(scope, receive, send)
    assert (await identify(f"Bearer {world.key}")).answering == 0
    assert response.status_code == 200  # and so it is here to the end


async def test_of_an_endless_body_no_more_is_read_than_is_allowed(world: World) -> None:
    parts = 0

    async def receive() -> dict[str, object]:
        nonlocal parts
        parts += 1
        assert parts < 100
        return {"type": "http.request", "body": b" " * (1 << 20), "more_body": True}

    scope = {**SCOPE, "headers": [(b"authorization", f"Bearer {world.key}".encode())]}
    response = await chat._answer(Request(scope, receive), answer_chat)
    assert (response.status_code, parts) == (413, 5)


async def test_a_key_has_one_count_however_many_others_call_between(
    world: World, allow: Allow, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = world.key
    allow(concurrency=1)
    monkeypatch.setattr(callers, "REMEMBERED", 1)
    limited = await identify(f"Bearer {world.key}")
    await identify(f"Bearer {others}")
    assert await identify(f"Bearer {world.key}") is limited


async def test_a_time_limit_of_the_answer_itself_is_no_caller_who_left() -> None:
    async def receive() -> dict[str, object]:
        await asyncio.sleep(30)
        return {}

    async def answer() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await unless_caller_leaves(receive, answer())


def test_a_place_is_given_back_once() -> None:
    caller = Caller("alice", concurrency=2)
    first, second = caller.take_place(), caller.take_place()
    for _ in range(3):
        first.leave()
    assert caller.answering == 1
    second.leave()
    assert caller.answering == 0


async def until_answering(key: str, expected: int) -> None:
    """Wait until so many answers of the key are under way."""
    for _ in range(500):
        if (await identify(f"Bearer {key}")).answering == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{(await identify(f'Bearer {key}')).answering} answers are still under way")
