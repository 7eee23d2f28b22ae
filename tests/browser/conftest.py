"""One Chromium and one world for all browser tests: starting them takes longer than most of the tests."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "unit"), str(HERE)]

from browser_support import CHROMIUM, DESKTOP, FLAGS  # noqa: E402
from chat_support import World, chat_world, make_certificate  # noqa: E402

if TYPE_CHECKING:
    from playwright import async_api as playwright


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with chat_world(make_certificate(tmp_path_factory.mktemp("tls"))) as made:
        question = [{"role": "user", "content": "Are you awake?"}]  # the first chat loads Prompt Flow
        async with made.client() as client:
            await client.chat.completions.create(model="support", messages=question)
        yield made


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator["playwright.Browser"]:
    from playwright.async_api import async_playwright

    async with async_playwright() as tools:
        browser = await tools.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="package")
async def world(shared_world: World) -> World:
    """Two live models and an endpoint that has been asked nothing yet."""
    from function_app import live

    shared_world.container.records.clear()
    for name in ("shop-returns", "support"):
        shared_world.container.put_live(name, shared_world.endpoint.uri)
    live._by_loop.clear()
    endpoint = shared_world.endpoint
    endpoint.words, endpoint.pause, endpoint.handler = ["Yes", ", of", " course."], 0.0, None
    endpoint.bodies.clear()
    endpoint.broken_off = asyncio.Event()
    return shared_world


@pytest_asyncio.fixture(loop_scope="package")
async def context(browser: "playwright.Browser") -> AsyncIterator["playwright.BrowserContext"]:
    context = await browser.new_context(viewport=DESKTOP, permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(10_000)
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="package")
async def page(context: "playwright.BrowserContext", world: World) -> AsyncIterator["playwright.Page"]:
    """A page that is open and has its key. A script error, a blocked style or a foreign address fails the test."""
    page = await context.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda line: trouble.append(line.text) if line.type == "error" else None)
    page.on("request", lambda asked: None if asked.url.startswith((world.url, "data:")) else trouble.append(asked.url))
    await page.add_init_script(f"sessionStorage.setItem('key', '{world.key}')")
    await page.goto(f"{world.url}/chat")
    await page.locator("#text:focus").wait_for()
    yield page
    expected = ("status of", "ERR_INCOMPLETE_CHUNKED_ENCODING")  # what Chromium says of an answer that is an error
    assert not [line for line in trouble if not any(word in line for word in expected)], "the browser complained"
