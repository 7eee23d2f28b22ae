"""The stock OpenAI client for Node against the chat API: tests/clients/chat.mjs asks and judges, in one process."""

import asyncio
import os
import re
from pathlib import Path

import pytest
from aiohttp import web
from chat_support import World, event

from function_app import api_keys
from function_app.settings import settings

CLIENTS = Path(__file__).resolve().parents[1] / "clients"


def steer_by_prompts(world: World) -> None:
    """Let the endpoint do what the prompt says."""
    refused: set[str] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        prompt = world.endpoint.bodies[-1]["messages"][-1]["content"]
        if prompt == "busy" or (prompt == "busy once" and prompt not in refused):
            refused.add(prompt)
            return web.json_response({"error": {"message": "busy"}}, status=429, headers={"Retry-After": "1"})
        if prompt not in ("break off", "without end"):
            return await world.endpoint.usual(request)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(event([{"index": 0, "delta": {"content": "word "}}]))
                if prompt == "break off":
                    return response
                await asyncio.sleep(0.02)
        except (ConnectionResetError, asyncio.CancelledError):
            world.endpoint.broken_off.set()
            raise

    world.endpoint.handler = answer


async def test_the_stock_client_for_node_gets_answers_streams_and_typed_errors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (CLIENTS / "node_modules" / "openai").is_dir(), "OpenAI's client for Node is not installed: make install"
    steer_by_prompts(world)
    world.container.put_live("orders", world.endpoint.uri)
    narrow, entry = api_keys.new_key("narrow", models="support", concurrency=1)
    monkeypatch.setenv("CHAT_API_KEYS", f"{os.environ['CHAT_API_KEYS']},{entry}")
    settings.cache_clear()
    node = await asyncio.create_subprocess_exec(
        "node", "--test-reporter=tap", "chat.mjs",
        cwd=CLIENTS,
        env={
            "PATH": os.environ["PATH"], "CHAT_URL": f"{world.url}/v1", "CHAT_KEY": world.key, "NARROW_KEY": narrow,
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed = (await node.communicate())[0].decode()
    assert node.returncode == 0, printed
    written = len(re.findall(r"^ *test\(", (CLIENTS / "chat.mjs").read_text(encoding="utf-8"), re.MULTILINE))
    assert int(re.search(r"^# pass (\d+)$", printed, re.MULTILINE)[1]) >= written, printed
    assert "# skipped 0" in printed
    await asyncio.wait_for(world.endpoint.broken_off.wait(), 2)
