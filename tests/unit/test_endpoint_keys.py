"""A model behind a key: the chat API asks Resource Manager for the key, keeps it in memory, follows its changes."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from chat_support import World, _serve

WORKSPACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
HELLO: Any = [{"role": "user", "content": "Hello"}]
ENDPOINT = (
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/serverlessEndpoints/e"
)


class ResourceManager:
    """Metadata of a cloud, and the keys of one endpoint, for which a token of its own is needed."""

    def __init__(self) -> None:
        self.key = "key-of-today"
        self.status = 200
        self.asked = 0
        self.url = ""

    async def metadata(self, request: web.Request) -> web.Response:
        return web.json_response({"name": "Local", "resourceManager": f"{self.url}/"})

    async def keys(self, request: web.Request) -> web.Response:
        assert request.path == f"{WORKSPACE}/serverlessEndpoints/e/listKeys"
        assert request.headers["Authorization"].startswith("Bearer ey")
        self.asked += 1
        await asyncio.sleep(0.01)
        return web.json_response({"primaryKey": self.key}, status=self.status)


@pytest.fixture
async def manager(
    certificate: tuple[Path, Path], world: World, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ResourceManager]:
    """The world's model is behind a key."""
    stub = ResourceManager()
    app = web.Application()
    app.router.add_get("/metadata/endpoints", stub.metadata)
    app.router.add_post("/{path:.*}", stub.keys)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with _serve(app, context) as port:
        stub.url = f"https://localhost:{port}"
        monkeypatch.setenv("ARM_CLOUD_METADATA_URL", f"{stub.url}/metadata/endpoints?api-version=2019-05-01")
        record = world.container.records["live/support.json"]
        assert isinstance(record, dict)
        record["auth"] = "key"

        async def locked(request: web.Request) -> web.StreamResponse:
            if request.headers["Authorization"] != f"Bearer {stub.key}":
                return web.json_response({"error": {"code": "Unauthorized", "message": "wrong key"}}, status=401)
            world.endpoint.handler = None
            try:
                return await world.endpoint.answer(request)
            finally:
                world.endpoint.handler = locked

        world.endpoint.handler = locked
        yield stub


async def ask(world: World) -> str | None:
    answer = await world.client().chat.completions.create(model="support", messages=HELLO)
    return answer.choices[0].message.content


async def test_the_key_is_asked_for_once_and_again_when_it_was_replaced(
    world: World, manager: ResourceManager, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert await asyncio.gather(*(ask(world) for _ in range(4))) == ["Hello there!"] * 4
        assert manager.asked == 1
        manager.key = "key-of-tomorrow"
        assert await ask(world) == "Hello there!"
        assert manager.asked == 2
    assert "key-of" not in caplog.text


async def test_a_key_that_may_not_be_read_is_explained(world: World, manager: ResourceManager) -> None:
    manager.status = 403
    with pytest.raises(openai.APIStatusError, match="AzureML Data Scientist"):
        await ask(world)
    manager.status = 429
    with pytest.raises(openai.RateLimitError, match="Resource Manager answered 429"):
        await ask(world)


async def test_a_model_that_has_moved_to_another_endpoint_answers(world: World) -> None:
    assert await ask(world) == "Hello there!"
    uri = world.endpoint.uri
    world.container.put_live("support", uri.replace("/v1/", "/nowhere/"))
    from function_app.live import live_models

    await live_models().find_again("support")
    world.container.put_live("support", uri)  # went live since; the list that is kept says otherwise
    assert await ask(world) == "Hello there!"
    world.container.put_live("support", uri.replace("/v1/", "/nowhere/"))
    await live_models().find_again("support")
    with pytest.raises(openai.APIStatusError) as error:
        await ask(world)
    assert error.value.status_code == 502


async def test_a_model_that_was_retired_a_moment_ago_is_not_found(world: World) -> None:
    from function_app.live import live_models

    world.container.put_live("support", world.endpoint.uri.replace("/v1/", "/nowhere/"))  # its endpoint is gone
    await live_models().find_again("support")
    world.container.records.clear()  # the list that is kept still has it
    with pytest.raises(openai.NotFoundError, match="No model is live") as error:
        await ask(world)
    assert error.value.code == "model_not_found"


async def test_who_waits_for_a_key_together_fails_together(world: World, manager: ResourceManager) -> None:
    """One after the other they would wait for as many time limits as there are callers."""
    manager.status = 500
    answers = await asyncio.gather(*(ask(world) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, openai.InternalServerError) for answer in answers)
    assert manager.asked <= 4  # one, and one more for each that asked again elsewhere by itself
