"""Which chats mark their model as used, and that a mark neither delays nor fails one."""

import asyncio
import threading
import time
from typing import Any

import openai
import pytest
from aiohttp import web
from chat_support import World, until

from function_app import usage

MARK = usage._mark  # the world has another one
HELLO: Any = [{"role": "user", "content": "Hello"}]


async def written() -> None:
    """Until the marks of the chats so far are written: by one thread, which has then done what came before."""
    await asyncio.to_thread(usage._writer.submit(int).result)


async def test_an_answered_chat_marks_its_model_once_in_a_while(world: World) -> None:
    async with world.client() as client:
        await client.chat.completions.create(model="support", messages=HELLO)
        stream = await client.chat.completions.create(model="support", messages=HELLO, stream=True)
        assert [chunk async for chunk in stream]
        await written()
        assert world.used == ["support"]
        usage._marked["support"] -= usage.INTERVAL.total_seconds()
        stream = await client.chat.completions.create(model="support", messages=HELLO, stream=True)
        assert [chunk async for chunk in stream]
        await written()
    assert world.used == ["support", "support"]


async def test_a_chat_that_was_not_answered_marks_nothing(world: World) -> None:
    async def fail(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "broken"}}, status=400)

    world.endpoint.handler = fail
    async with world.client() as client:
        with pytest.raises(openai.APIStatusError):
            await client.chat.completions.create(model="support", messages=HELLO)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nobody", messages=HELLO)
    await written()
    assert world.used == []


async def test_storage_that_hangs_or_fails_is_not_noticed_by_a_chat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, tried = threading.Event(), list[bool]()

    class Container:
        def get_blob_client(self, name: str) -> "Container":
            assert name == "used/support"
            return self

        def upload_blob(self, *_: object, **limits: object) -> None:
            assert limits["retry_total"] == 0
            tried.append(hanging.wait(60))
            raise OSError("storage is away")

    monkeypatch.setattr(usage, "_mark", MARK)
    monkeypatch.setattr(usage.azure_clients, "container", lambda _: Container())
    usage._marked.clear()
    async with world.client() as client:
        await client.chat.completions.create(model="support", messages=HELLO)
        assert tried == [], "the chat has waited for storage"
        hanging.set()
        await until(lambda: time.monotonic() - usage._marked["support"] > 200)  # to be tried again, but not at once
        await client.chat.completions.create(model="support", messages=HELLO)
    await written()
    assert tried == [True]
