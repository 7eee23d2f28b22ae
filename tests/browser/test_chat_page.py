"""The chat page in a real, headless Chromium. Screenshots are kept in tests/browser/output/."""

import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "unit"))

from chat_support import World, chat_world, make_certificate  # noqa: E402

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH: apt-get install chromium to run the browser tests"
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1100, "height": 760}, {"width": 390, "height": 780}
WORDS = (
    "You can return anything within 30 days, as long as it is unused.\n\n"
    "1. Open your order and choose Return.\n2. Print the label.\n3. Drop the parcel off; the refund takes two days."
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def world(certificate: tuple[Path, Path]) -> AsyncIterator[World]:
    async with chat_world(certificate) as made:
        made.endpoint.words = WORDS.replace(" ", " |").split("|")
        made.container.put_live("shop-returns", made.endpoint.uri)
        yield made


@pytest.fixture
async def context() -> AsyncIterator["playwright.BrowserContext"]:
    async with playwright.async_playwright() as tools:
        browser = await tools.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield await browser.new_context(viewport=DESKTOP, permissions=["clipboard-read", "clipboard-write"])
        await browser.close()


@pytest.fixture
async def page(context: "playwright.BrowserContext", world: World) -> AsyncIterator["playwright.Page"]:
    """A page that is open and has its key. A script error or a blocked style fails the test."""
    page = await context.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda line: trouble.append(line.text) if line.type == "error" else None)
    await page.goto(f"{world.url}/chat")
    await page.get_by_role("dialog").wait_for()
    await keep(page, "key")
    await page.get_by_placeholder("Paste the key").fill(world.key)
    await page.keyboard.press("Enter")
    await page.locator("#text:focus").wait_for()
    yield page
    assert not [line for line in trouble if "status of" not in line], "the browser complained"


async def keep(page: "playwright.Page", name: str) -> None:
    """Save a screenshot."""
    (HERE / "output").mkdir(exist_ok=True)
    await page.screenshot(path=HERE / "output" / f"chat-{name}.png")


async def ask(page: "playwright.Page", text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")


async def test_an_answer_streams_in_with_its_facts(page: "playwright.Page", world: World) -> None:
    await keep(page, "empty")
    world.endpoint.pause = 0.03
    await page.get_by_role("combobox", name="Model").select_option("shop-returns")
    await ask(page, "How do I return a pair of shoes?")
    answer = page.locator(".assistant .text")
    await playwright.expect(answer).to_contain_text("You can")
    assert await answer.inner_text() != WORDS, "it did not stream"
    await playwright.expect(page.locator(".meta")).to_contain_text("4 tokens")
    assert await answer.inner_text() == WORDS
    assert world.endpoint.bodies[-1]["model"] == "shop-returns"
    await page.get_by_role("button", name="Copy").click()
    assert await page.evaluate("navigator.clipboard.readText()") == WORDS
    await ask(page, "And if I lost the receipt?")
    await playwright.expect(page.locator(".meta")).to_have_count(2)
    assert [message["role"] for message in world.endpoint.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size(DESKTOP)
        await keep(page, f"desktop-{scheme}")
        await page.set_viewport_size(PHONE)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
        await keep(page, f"phone-{scheme}")


@pytest.mark.parametrize("how", ["key", "button"])
async def test_stopping_keeps_what_was_said_and_frees_the_endpoint(
    page: "playwright.Page", world: World, how: str
) -> None:
    world.endpoint.words, world.endpoint.pause = ["word "] * 300, 0.03
    await ask(page, "Tell me everything")
    await playwright.expect(page.locator(".assistant .text")).to_contain_text("word word")
    await keep(page, "streaming")
    if how == "key":
        await page.keyboard.press("Escape")
    else:
        await page.get_by_role("button", name="Stop").click()
    await playwright.expect(page.locator(".meta")).to_contain_text("stopped")
    await page.wait_for_timeout(300)
    assert world.endpoint.broken_off.is_set()
    assert len(await page.locator(".assistant .text").inner_text()) > 5


async def test_a_failure_is_told_and_can_be_tried_again(page: "playwright.Page", world: World) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        world.endpoint.handler = None
        return web.json_response({"error": {"message": "Too many requests are waiting."}}, status=429)

    world.endpoint.handler = busy
    await ask(page, "Hello")
    await playwright.expect(page.get_by_role("alert")).to_contain_text("Too many requests are waiting.")
    await keep(page, "error")
    await page.get_by_role("button", name="Try again").click()
    await playwright.expect(page.locator(".assistant .text")).to_contain_text("You can return")
    assert [message["content"] for message in world.endpoint.bodies[-1]["messages"]] == ["Hello"]


async def test_what_a_model_says_is_text_and_never_markup(page: "playwright.Page", world: World) -> None:
    world.endpoint.words = ["<img src=x onerror=document.title='owned'>", "<b>bold</b>"]
    await ask(page, "Hello")
    await playwright.expect(page.locator(".assistant .text")).to_contain_text("<b>bold</b>")
    assert await page.title() == "Chat"


async def test_a_wrong_key_is_asked_for_again_and_a_right_one_lasts_for_the_tab(
    page: "playwright.Page", context: "playwright.BrowserContext", world: World
) -> None:
    await page.reload()
    await page.locator("#text:focus").wait_for()
    other = await context.new_page()
    await other.goto(f"{world.url}/chat")
    await other.get_by_placeholder("Paste the key").fill("wrong")
    await other.keyboard.press("Enter")
    await playwright.expect(other.get_by_role("alert")).to_contain_text("not one that this app knows")
    await keep(other, "wrong-key")


async def test_the_page_notices_the_first_model(page: "playwright.Page", world: World) -> None:
    from function_app import live

    live._by_loop.clear()
    world.container.records.clear()
    await page.reload()
    await playwright.expect(page.get_by_role("heading")).to_have_text("No model is live yet")
    await keep(page, "no-model")
    live._by_loop.clear()
    world.container.put_live("support", world.endpoint.uri)
    await page.locator("#text:focus").wait_for(timeout=10_000)


async def test_it_can_be_used_by_keyboard_alone(page: "playwright.Page") -> None:
    await page.keyboard.type("Hi")
    reached = []
    for _ in range(8):
        reached.append(await page.evaluate("document.activeElement.id"))
        await page.keyboard.press("Tab")
    assert {"text", "send", "model", "key"} <= set(reached)
    unnamed = await page.evaluate(
        "[...document.querySelectorAll('button, select, input, textarea')].filter((e) => e.checkVisibility())"
        ".filter((e) => !(e.textContent.trim() || e.labels?.length)).map((e) => e.id)"
    )
    assert unnamed == []
