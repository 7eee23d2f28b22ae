"""What a caller may do: its own models and no sign of others, so many answers at a time, and no place is ever lost."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import aiohttp
import openai
import pytest
from aiohttp import web
from azurefunctions.extensions.http.fastapi import Request
from chat_support import World, event
from entra_support import CLIENT, StubEntra

from function_app import callers, chat
from function_app.api_keys import new_key
from function_app.callers import Caller, identify
from function_app.chat_answer import answer_chat
from function_app.chat_keys import KeyRefused
from function_app.openai_api import ApiError
from function_app.settings import settings

HELLO = [{"role": "user", "content": "a secret prompt"}]


Configure = Callable[..., None]
Allow = Callable[..., None]


@pytest.fixture
def configure(world: World) -> Iterator[Configure]:
    """Changes app settings, until the world ends."""
    with pytest.MonkeyPatch.context() as environment:

        def change(**values: str) -> None:
            for name, value in values.items():
                environment.setenv(name, value)
            settings.cache_clear()

        yield change


@pytest.fixture
def allow(world: World, configure: Configure) -> Allow:
    """Gives the world's client a key with limits; the key that it had still opens."""

    def limited(models: str | None = None, concurrency: int | None = None) -> None:
        world.key, entry = new_key("limited", models, concurrency)
        configure(CHAT_API_KEYS=f"{settings().chat_api_keys},{entry}")

    return limited


async def ask(world: World, model: str = "support", stream: bool = False) -> object:
    return await world.client().chat.completions.create(model=model, messages=HELLO, stream=stream)  # type: ignore[call-overload]


async def test_a_key_sees_and_asks_only_its_own_models(world: World, allow: Allow) -> None:
    world.container.put_live("secret", world.endpoint.uri)
    allow(models="support,sales")
    await ask(world)
    assert [model.id async for model in world.client().models.list()] == ["support"]
    with pytest.raises(openai.PermissionDeniedError, match="It may use: sales, support") as refused:
        await ask(world, "secret")
    assert (refused.value.code, refused.value.param) == ("model_not_allowed", "model")
    with pytest.raises(openai.PermissionDeniedError):
        await world.client().models.retrieve("secret")
    with pytest.raises(openai.NotFoundError, match=r"'sales' is not live. Live models: support\.") as missing:
        await ask(world, "sales")
    assert "secret" not in missing.value.message
    assert [body["messages"] for body in world.endpoint.bodies] == [HELLO]


async def test_what_is_live_cannot_be_told_from_what_is_not_by_those_who_may_not_use_it(
    world: World, allow: Allow
) -> None:
    world.container.put_live("secret", world.endpoint.uri)
    allow(models="support")
    said = []
    for model in ("secret", "hidden", "secret@1", "secret@r-0123456789ab"):
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await ask(world, model)
        said.append(refused.value.message.replace(model.partition("@")[0], "…"))
    assert len(set(said)) == 1


def test_a_pin_belongs_to_its_model() -> None:
    caller = Caller("alice", frozenset({"support"}))
    caller.check_model("support@3")
    for name in ("sales@support", "@support", "", "Support", "supporter"):
        with pytest.raises(ApiError):
            caller.check_model(name)


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
    body = json.dumps({"model": "support", "messages": HELLO, "stream": True}).encode()

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"authorization", f"Bearer {world.key}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    response = await chat._answer(Request(scope, receive), answer_chat)
    assert response.status_code == 200
    await until_answering(world.key, 1)
    del response  # as when the host finds that the client has gone before the first byte
    await until_answering(world.key, 0)


def test_a_place_is_given_back_once() -> None:
    caller = Caller("alice", concurrency=2)
    first, second = caller.take_place(), caller.take_place()
    for _ in range(3):
        first.leave()
    assert caller.answering == 1
    second.leave()
    assert caller.answering == 0


async def test_a_token_opens_the_chat_beside_the_keys(
    world: World,
    entra: StubEntra,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(CHAT_ENTRA_AUDIENCE="api://chat", CHAT_ENTRA_ISSUER=entra.address(), CHAT_ENTRA_ROLE="Chat.User")
    await ask(world)
    key, token = world.key, entra.token(aud="api://chat", roles=["Chat.User"])
    world.key = entra.token(aud="api://chat", roles=[])
    entra.status = 500
    with pytest.raises(openai.InternalServerError) as unavailable:
        await ask(world)
    assert (unavailable.value.status_code, unavailable.value.code) == (503, "sign_in_unavailable")
    assert unavailable.value.response.headers["Retry-After"]
    world.key = key
    await ask(world)  # a key needs no issuer
    entra.status = 200
    monkeypatch.setattr("function_app.entra_signing_keys.FAILED_SECONDS", 0)
    world.key = token
    with caplog.at_level("INFO", "function_app.chat_log"):
        await ask(world)
    assert f"key=entra:{CLIENT} " in caplog.text
    world.key = entra.token(aud="api://chat")
    with pytest.raises(openai.PermissionDeniedError) as assigned:
        await ask(world)
    assert assigned.value.code == "role_missing"
    world.key = entra.token(aud="api://other")
    with pytest.raises(openai.AuthenticationError, match="for api://chat") as refused:
        await ask(world)
    assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
    with pytest.raises(KeyRefused, match=r"no API key\. Send it, or an Entra token for api://chat, in the header"):
        await identify("")
    assert token not in caplog.text


async def test_with_tokens_alone_the_door_says_so_and_with_nothing_it_is_closed(
    world: World,
    entra: StubEntra,
    configure: Configure,
) -> None:
    configure(CHAT_API_KEYS="", CHAT_ENTRA_AUDIENCE="api://chat", CHAT_ENTRA_ISSUER=entra.address(1))
    await identify(f"Bearer {entra.token(1)}")
    for header in ("", "Basic x", f"Bearer {world.key}"):
        with pytest.raises(KeyRefused, match=r"no token\. Send an Entra token for api://chat"):
            await identify(header)
    configure(CHAT_ENTRA_AUDIENCE="", CHAT_ENTRA_ISSUER="")
    for header in ("", f"Bearer {world.key}", f"Bearer {entra.token(1)}"):
        with pytest.raises(KeyRefused, match="closed because no key is configured"):
            await identify(header)


async def test_a_token_is_remembered_until_it_ends_but_not_for_longer_than_an_hour(
    entra: StubEntra,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(CHAT_ENTRA_AUDIENCE="api://chat", CHAT_ENTRA_ISSUER=entra.address(1))
    checked: list[str] = []
    check = callers.EntraTokens.check

    async def counted(tokens: callers.EntraTokens, token: str) -> tuple[str, float]:
        checked.append(token)
        return await check(tokens, token)

    monkeypatch.setattr(callers.EntraTokens, "check", counted)
    now = time.time()
    short, long = entra.token(1, exp=int(now) + 600), entra.token(1, exp=int(now) + 86_400)
    for after, token, expected in (
        (0, short, 1), (500, short, 1), (601, short, 2),
        (0, long, 3), (3_500, long, 3), (3_700, long, 4), (3_800, long, 4),
    ):  # fmt: skip
        monkeypatch.setattr(callers, "time", SimpleNamespace(time=lambda after=after: now + after))
        await identify(f"Bearer {token}")
        assert len(checked) == expected, f"after {after} s"


async def test_only_so_many_are_remembered(
    entra: StubEntra,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(CHAT_ENTRA_AUDIENCE="api://chat", CHAT_ENTRA_ISSUER=entra.address(1))
    monkeypatch.setattr(callers, "REMEMBERED", 2)
    first, second, third = (entra.token(1, uti=each) for each in "abc")
    callers_by_turn = [await identify(f"bearer  {token} ") for token in (first, second, first, third, second, first)]
    assert callers_by_turn[0] is callers_by_turn[2]
    assert callers_by_turn[1] is callers_by_turn[4]
    assert callers_by_turn[0] is not callers_by_turn[5], "the third has taken the place of the first"


async def until_answering(key: str, expected: int) -> None:
    """Wait until so many answers of the key are under way."""
    for _ in range(500):
        if (await identify(f"Bearer {key}")).answering == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{(await identify(f'Bearer {key}')).answering} answers are still under way")
