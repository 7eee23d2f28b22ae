"""The way to the endpoint: tokens in good time, sent at most twice, closed when the caller leaves, at his pace."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from aiohttp import web
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity.aio import DefaultAzureCredential
from chat_support import World, event, until

HELLO: Any = [{"role": "user", "content": "Hello"}]
MEGABYTE = 1 << 20


async def ask(world: World) -> str | None:
    answer = await world.client().chat.completions.create(model="support", messages=HELLO)
    return answer.choices[0].message.content


async def test_no_request_waits_for_a_token_while_the_old_one_is_valid(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.identity.valid_seconds = 200  # valid, and below the margin
    await ask(world)
    asked, answer_now = 0, asyncio.Event()

    async def get_token(self: object, *scopes: str) -> AccessToken:
        nonlocal asked
        asked += 1
        await answer_now.wait()
        return AccessToken("the-next-token", int(time.time()) + 3600)

    monkeypatch.setattr(DefaultAzureCredential, "get_token", get_token)
    import endpoint

    monkeypatch.setattr(endpoint, "TOKEN_AGAIN_SECONDS", 0)
    await asyncio.wait_for(asyncio.gather(*(ask(world) for _ in range(5))), 5)
    assert asked == 1
    answer_now.set()
    await asyncio.sleep(0.05)
    await ask(world)
    sent = [headers["Authorization"] for headers in world.endpoint.headers]
    assert len(set(sent[:6])) == 1
    assert sent[6] == "Bearer the-next-token"
    assert asked == 1


async def test_an_identity_that_fails_is_not_asked_by_every_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.identity.valid_seconds = 200
    await ask(world)
    asked = 0

    async def get_token(self: object, *scopes: str) -> AccessToken:
        nonlocal asked
        asked += 1
        raise ClientAuthenticationError("not now")

    monkeypatch.setattr(DefaultAzureCredential, "get_token", get_token)
    import endpoint

    client = await endpoint.endpoint_client()
    client._refreshed_at = float("-inf")
    for _ in range(3):
        await ask(world)
    assert asked == 1


async def test_a_token_that_cannot_be_renewed_is_used_as_long_as_it_is_valid(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.identity.valid_seconds = 200
    await ask(world)

    async def get_token(self: object, *scopes: str) -> AccessToken:
        raise ClientAuthenticationError("not now")

    monkeypatch.setattr(DefaultAzureCredential, "get_token", get_token)
    import endpoint

    monkeypatch.setattr(endpoint, "TOKEN_LAST_SECONDS", 250)  # from now on a request waits for the next
    assert await ask(world) == "Hello there!"
    client = await endpoint.endpoint_client()
    client._token = AccessToken("expired", int(time.time()) - 1)
    with pytest.raises(openai.InternalServerError, match="No Azure identity can be used"):
        await ask(world)


async def test_a_request_that_the_server_dies_of_is_not_sent_a_third_time(world: World) -> None:
    await ask(world)
    before = len(world.endpoint.bodies)

    async def die(request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.abort()
        await asyncio.sleep(0)
        return web.Response()

    world.endpoint.handler = die
    with pytest.raises(openai.APIStatusError, match="closed the connection twice") as error:
        await ask(world)
    assert error.value.status_code == 503
    assert len(world.endpoint.bodies) == before + 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_leaves_before_the_answer_closes_the_connection_to_the_endpoint(
    world: World, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def never(request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.sleep(30)
        finally:
            world.endpoint.broken_off.set()
        return web.Response()

    world.endpoint.handler = never
    with pytest.raises(openai.APITimeoutError):
        await world.client(timeout=0.5).chat.completions.create(model="support", messages=HELLO, stream=stream)
    await asyncio.wait_for(world.endpoint.broken_off.wait(), 10)
    await until(lambda: "status=499 code=client_closed" in caplog.text)
    assert not [record for record in caplog.records if record.name.startswith("function_app") and record.exc_info]
    world.endpoint.handler = None
    assert await ask(world) == "Hello there!"


async def test_an_answer_that_takes_its_time_is_waited_for(world: World) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)  # the caller is being watched by now
        world.endpoint.handler = None
        return await world.endpoint.answer(request)

    world.endpoint.handler = slowly
    assert await ask(world) == "Hello there!"


async def test_a_long_event_is_read_whole(world: World) -> None:
    world.endpoint.words = ["x" * 1_500_000]
    stream = await world.client().chat.completions.create(model="support", messages=HELLO, stream=True)
    assert len("".join([chunk.choices[0].delta.content or "" async for chunk in stream])) == 1_500_000


class Pour:
    """An endpoint that sends without end, as fast as it can. ``sent``: how many bytes so far."""

    def __init__(self, world: World) -> None:
        self.sent = 0
        self._broken_off = world.endpoint.broken_off

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        chunk = event([{"index": 0, "delta": {"content": "x" * 65_000}, "finish_reason": None}])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(chunk)
                self.sent += len(chunk)
                # A write to a socket that has just failed neither raises nor waits, until the loop has had a turn to
                # say that the connection is lost.
                await asyncio.sleep(0)
        finally:
            self._broken_off.set()


async def test_a_caller_who_reads_slowly_makes_the_endpoint_wait(world: World) -> None:
    """What is under way between them is bounded by buffers, not by how much the endpoint could send."""
    pour = world.endpoint.handler = Pour(world)
    body = {"model": "support", "messages": HELLO, "stream": True}
    headers = {"Authorization": f"Bearer {world.key}"}
    async with (
        httpx.AsyncClient(base_url=world.url, headers=headers) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        read = response.aiter_raw()
        await anext(read)
        deadline, before = time.monotonic() + 10, -1
        while pour.sent != before and time.monotonic() < deadline:  # until it stands still
            before = pour.sent
            await asyncio.sleep(0.3)
        assert pour.sent == before
        assert 0 < pour.sent < 32 * MEGABYTE
    await asyncio.wait_for(world.endpoint.broken_off.wait(), 10)


async def test_a_caller_who_leaves_in_the_middle_closes_the_connection_however_fast_the_endpoint_sends(
    world: World,
) -> None:
    world.endpoint.handler = Pour(world)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(world.url.split(":")[2].split("/")[0]))
    body = json.dumps({"model": "support", "messages": HELLO, "stream": True})
    writer.write(
        f"POST /api/v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    await reader.readline()
    writer.transport.abort()
    await asyncio.wait_for(world.endpoint.broken_off.wait(), 5)


async def test_hundreds_of_open_streams_are_all_answered(world: World) -> None:
    world.endpoint.words, world.endpoint.pause = ["word"] * 4, 0.2
    body = {"model": "support", "messages": HELLO, "stream": True}
    headers = {"Authorization": f"Bearer {world.key}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def read() -> bool:
            async with session.post(f"{world.url}/v1/chat/completions", json=body) as response:
                return response.status == 200 and (await response.read()).endswith(b"data: [DONE]\n\n")

        assert all(await asyncio.gather(*(read() for _ in range(300))))
