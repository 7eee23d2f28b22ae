"""Who is let in, by key or token, and what they may do: their own models, and no sign of others."""

import time
from types import SimpleNamespace

import openai
import pytest
from aiohttp import web
from chat_support import Allow, Configure, World
from entra_support import CLIENT, StubEntra

from function_app import callers
from function_app.callers import Caller, identify
from function_app.chat_keys import KeyRefused
from function_app.openai_api import ApiError

HELLO = [{"role": "user", "content": "a secret prompt"}]


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


async def test_a_model_that_is_retired_under_way_betrays_no_other(world: World, allow: Allow) -> None:
    world.container.put_live("secret", world.endpoint.uri)
    world.container.put_live("sales", world.endpoint.uri)
    allow(models="support,sales")

    async def retire(_: web.Request) -> web.StreamResponse:
        world.container.records.pop("live/support.json", None)
        return web.json_response({"error": {"message": "gone"}}, status=404)

    world.endpoint.handler = retire
    with pytest.raises(openai.NotFoundError, match=r"'support' is not live\. Live models: sales\.") as gone:
        await ask(world)
    assert gone.value.code == "model_not_found"


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
