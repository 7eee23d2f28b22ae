"""The conversation on the chat page, in a real, headless Chromium. Screenshots are kept in tests/browser/output/."""

import re

import pytest
from aiohttp import web
from browser_support import CHROMIUM, PHONE, WORDS, Gate, ask, keep, words_of
from chat_support import World, event

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: pip install playwright")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on the PATH: apt-get install chromium to run the browser tests"
    ),
    pytest.mark.asyncio(loop_scope="package"),
]
FACTS = re.compile(r"first .* s.*total .* s.*48 tokens.*tokens/s")


async def box(page: "playwright.Page", selector: str) -> tuple[float, float]:
    found = await page.locator(selector).bounding_box()
    assert found
    return found["x"], found["y"]


async def test_an_answer_streams_in_with_its_facts_and_nothing_jumps(page: "playwright.Page", world: World) -> None:
    await keep(page, "empty")
    words = words_of(WORDS)
    world.endpoint.handler = gate = Gate(words[:9], words[9:])
    await page.get_by_role("combobox", name="Model").select_option("shop-returns")
    await ask(page, "How do I return a pair of shoes?")
    answer = page.locator(".answer .text")
    await playwright.expect(answer).to_have_text("You can return anything within 30 days, as long")
    places = [await box(page, name) for name in ("header", ".prompt", ".answer .text", "#ask")]
    await keep(page, "streaming")
    gate.open.set()
    await playwright.expect(page.locator(".meta")).to_contain_text(
        re.compile(r"first .* s.*total .* s.*48 tokens.*tokens/s")
    )
    assert places == [await box(page, name) for name in ("header", ".prompt", ".answer .text", "#ask")]
    assert await answer.inner_text() == WORDS
    assert world.endpoint.bodies[-1]["model"] == "shop-returns"
    await playwright.expect(page.locator("#said")).to_contain_text("shop-returns answered: You can return")
    await page.get_by_role("button", name="Copy").click()
    assert await page.evaluate("navigator.clipboard.readText()") == WORDS
    await ask(page, "And if I lost the receipt?")
    await playwright.expect(page.locator(".fact:text('total')")).to_have_count(2)
    assert [message["role"] for message in world.endpoint.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    await keep(page, "conversation")
    await keep(page, "conversation-phone", PHONE)


async def test_two_models_answer_the_same_question_side_by_side(page: "playwright.Page", world: World) -> None:
    gates = {
        "shop-returns": Gate(words_of("Please send us an e-mail"), words_of(" and we will look into it for you.")),
        "support": Gate(words_of(WORDS[:80]), words_of(WORDS[80:])),
    }

    async def both(request: web.Request) -> web.StreamResponse:
        return await gates[world.endpoint.bodies[-1]["model"]](request)

    world.endpoint.handler = both
    await page.get_by_role("button", name="Compare two models").click()
    await playwright.expect(page.locator("#note")).to_contain_text("The base model “embedded” is not live")
    await keep(page, "compare-empty")
    await page.get_by_role("combobox", name="First model").select_option("shop-returns")
    await page.get_by_role("combobox", name="Second model").select_option("support")
    await ask(page, "How do I return a pair of shoes?")
    first, second = page.locator(".answer").nth(0), page.locator(".answer").nth(1)
    await playwright.expect(first).to_contain_text("Please send us")
    await playwright.expect(second).to_contain_text("You can return")
    top = await box(page, ".answer >> nth=0"), await box(page, ".answer >> nth=1")
    assert top[0][1] == top[1][1], "they do not stand side by side"
    await keep(page, "compare-streaming")
    await page.get_by_role("button", name="Stop shop-returns").click()
    await playwright.expect(first.locator(".meta")).to_contain_text("stopped")
    gates["support"].open.set()
    await playwright.expect(second.locator(".meta")).to_contain_text("48 tokens")
    assert await second.locator(".text").inner_text() == WORDS
    gates["shop-returns"].open.set()
    await ask(page, "And if I lost the receipt?")
    await playwright.expect(page.locator(".fact:text('48 tokens')")).to_have_count(3)
    said = {body["model"]: body["messages"][1]["content"] for body in world.endpoint.bodies[2:]}
    assert said == {"shop-returns": "Please send us an e-mail", "support": WORDS}, "each remembers its own answers"
    await keep(page, "compare")
    await keep(page, "compare-phone", PHONE)
    await playwright.expect(second.first).to_be_hidden()
    await page.get_by_role("radio", name="support").check()
    await playwright.expect(first).to_be_hidden()
    await playwright.expect(second).to_be_visible()
    await keep(page, "compare-phone-second", PHONE)


async def test_a_reader_who_scrolls_up_is_left_there(page: "playwright.Page", world: World) -> None:
    world.endpoint.handler = gate = Gate(["A line.\n\n"] * 40, ["The end."])
    await ask(page, "Tell me everything")
    await playwright.expect(page.locator(".answer p")).to_have_count(40)
    latest = page.get_by_role("button", name="To the latest answer")
    await playwright.expect(latest).to_be_hidden()
    await page.locator("#scroll").evaluate("(e) => (e.scrollTop = 100)")
    await playwright.expect(latest).to_be_visible()
    await keep(page, "scrolled")
    gate.open.set()
    await playwright.expect(page.locator(".answer p")).to_have_count(41)
    assert await page.locator("#scroll").evaluate("(e) => e.scrollTop") == 100
    await latest.click()
    await playwright.expect(page.get_by_text("The end.", exact=True)).to_be_in_viewport()


async def test_stop_all_and_escape_stop_both_answers(page: "playwright.Page", world: World) -> None:
    for how in ("Escape", "Stop all"):
        world.endpoint.handler = Gate(["One", " moment"], [])
        if how == "Escape":
            await page.get_by_role("button", name="Compare two models").click()
        await ask(page, "Tell me everything")
        await playwright.expect(page.locator(".waiting .text")).to_have_text(["One moment"] * 2)
        if how == "Escape":
            await page.keyboard.press("Escape")
        else:
            await page.get_by_role("button", name="Stop all").click()
        await playwright.expect(page.locator(".turn:last-child .fact:text('stopped')")).to_have_count(2)
        await playwright.expect(page.locator("#text")).to_be_focused()


@pytest.mark.parametrize("how", ["key", "button"])
async def test_stopping_keeps_what_was_said_and_frees_the_endpoint(
    page: "playwright.Page", world: World, how: str
) -> None:
    world.endpoint.words, world.endpoint.pause = ["word "] * 300, 0.03
    await ask(page, "Tell me everything")
    await playwright.expect(page.locator(".answer .text")).to_contain_text("word word")
    if how == "key":
        await page.keyboard.press("Escape")
    else:
        await page.get_by_role("button", name="Stop", exact=True).click()
    await playwright.expect(page.locator(".meta")).to_contain_text("stopped")
    await page.wait_for_timeout(300)
    assert world.endpoint.broken_off.is_set()
    assert len(await page.locator(".answer .text").inner_text()) > 5


async def test_a_failure_is_told_and_can_be_tried_again(page: "playwright.Page", world: World) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        world.endpoint.handler = None
        return web.json_response({"error": {"message": "The image is too large."}}, status=400)

    world.endpoint.handler = broken
    await ask(page, "Hello")
    await playwright.expect(page.get_by_role("alert")).to_contain_text("The image is too large.")
    await keep(page, "error")
    await page.get_by_role("button", name="Try again").click()
    await playwright.expect(page.locator(".answer .text")).to_have_text("Yes, of course.")
    assert [message["content"] for message in world.endpoint.bodies[-1]["messages"]] == ["Hello"]


async def test_a_busy_model_is_asked_again_when_it_said(page: "playwright.Page", world: World) -> None:
    waits = ["20", "40", "90"]

    async def busy(request: web.Request) -> web.StreamResponse:
        if not waits:
            world.endpoint.handler = None
            return await world.endpoint.answer(request)
        error = {"error": {"message": "Too many requests are waiting."}}
        return web.json_response(error, status=429, headers={"Retry-After": waits.pop(0)})

    world.endpoint.handler = busy
    await page.clock.install()
    await ask(page, "Hello")
    for wait in (20, 40):
        await playwright.expect(page.locator(".clock")).to_have_text(f"Trying again in {wait} s")
        await page.clock.run_for((wait - 2) * 1000)
        await playwright.expect(page.locator(".clock")).to_have_text("Trying again in 2 s")
        if wait == 20:
            await keep(page, "busy")
        await page.clock.run_for(2_500)
    again = page.get_by_role("button", name="Try again")  # three times were enough: now the reader decides
    await playwright.expect(again).to_have_text("Try again in 90 s")
    await playwright.expect(again).to_be_disabled()
    assert len(world.endpoint.bodies) == 3
    await page.clock.run_for(91_000)
    await again.click()
    await playwright.expect(page.locator(".answer .text")).to_have_text("Yes, of course.")


async def test_waiting_for_a_busy_model_can_be_stopped(page: "playwright.Page", world: World) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Busy."}}, status=503, headers={"Retry-After": "30"})

    world.endpoint.handler = busy
    await ask(page, "Hello")
    await playwright.expect(page.locator(".clock")).to_contain_text("Trying again in")
    await page.keyboard.press("Escape")
    await playwright.expect(page.locator(".answer .text")).to_have_text("(stopped)")
    await playwright.expect(page.get_by_role("button", name="Send")).to_be_visible()


async def test_an_answer_that_the_reader_left_is_told_as_stopped(page: "playwright.Page", world: World) -> None:
    world.endpoint.handler = Gate(["Half an"], [])
    await ask(page, "Hello")
    await playwright.expect(page.locator(".answer .text")).to_have_text("Half an")
    await page.reload()
    await playwright.expect(page.locator(".answer .text")).to_have_text("Half an")
    await playwright.expect(page.locator(".meta")).to_contain_text("stopped")


async def test_an_answer_that_breaks_off_keeps_its_words(page: "playwright.Page", world: World) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event([{"index": 0, "delta": {"content": "Half an"}, "finish_reason": None}]))
        request.transport.close()
        return response

    world.endpoint.handler = broken
    await ask(page, "Hello")
    await playwright.expect(page.get_by_role("alert")).to_contain_text("Try again")
    assert await page.locator(".answer .text").inner_text() == "Half an"


async def test_what_a_model_says_is_text_and_code_is_set_apart(page: "playwright.Page", world: World) -> None:
    code = 'def greet(name):\n    return f"Hello, {name}"'
    said = f"Like this:\n\n```python\n{code}\n```\n\n<img src=x onerror=document.title='owned'> and <b>bold</b>"
    world.endpoint.words = [said[i : i + 3] for i in range(0, len(said), 3)]
    await ask(page, "Hello")
    await playwright.expect(page.locator(".answer .text")).to_contain_text("<b>bold</b>")
    assert await page.title() == "Chat"
    await playwright.expect(page.locator(".block span").first).to_have_text("python")
    assert await page.locator(".block code").inner_text() == code
    assert "```" not in await page.locator(".answer .text").inner_text()
    await page.get_by_role("button", name="Copy the code").click()
    assert await page.evaluate("navigator.clipboard.readText()") == code
    await keep(page, "code")
    await keep(page, "code-phone", PHONE)


async def test_each_paragraph_runs_in_its_own_direction(page: "playwright.Page", world: World) -> None:
    world.endpoint.words = ["يمكنك إرجاع أي شيء خلال 30 يومًا.", "\n\nThe label is in your order."]
    await ask(page, "كيف أعيد زوجًا من الأحذية؟")
    await playwright.expect(page.locator(".answer .text")).to_contain_text("The label")
    assert await page.locator(".prompt").evaluate("(e) => getComputedStyle(e).direction") == "rtl"
    edges = await page.locator(".answer .text p").evaluate_all(
        "(all) => all.map((e) => { const range = document.createRange(); range.selectNodeContents(e);"
        " const text = range.getBoundingClientRect(), box = e.getBoundingClientRect();"
        " return [text.left - box.left, box.right - text.right]; })"
    )
    assert edges[0][1] < 2 < edges[0][0], "Arabic begins at the right"
    assert edges[1][0] < 2 < edges[1][1], "English begins at the left"
    await keep(page, "arabic-phone", PHONE)
