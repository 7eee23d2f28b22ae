"""The chat page in a real, headless Chromium. Screenshots are kept in tests/browser/output/."""

import re

import pytest
from aiohttp import web
from browser_support import CHROMIUM, DESKTOP, PHONE, Gate, keep
from chat_support import World, event

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: pip install playwright")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on the PATH: apt-get install chromium to run the browser tests"
    ),
    pytest.mark.asyncio(loop_scope="package"),
]
WORDS = (
    "You can return anything within 30 days, as long as it is unused.\n\n"
    "1. Open your order and choose Return.\n2. Print the label.\n3. Drop the parcel off; the refund takes two days."
)

FACTS = re.compile(r"first .* s.*total .* s.*48 tokens.*tokens/s")


async def ask(page: "playwright.Page", text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")


def words_of(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


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


async def test_settings_are_sent_and_stay_with_the_conversation(page: "playwright.Page", world: World) -> None:
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("System prompt").fill("Answer briefly.")
    await page.get_by_label("Temperature").fill("9")
    await page.get_by_label("Longest answer").fill("64")
    await page.get_by_role("button", name="Done").click()
    assert await page.locator("#temperature:invalid").count() == 1, "2 is the most"
    await page.get_by_label("Temperature").fill("0.2")
    await keep(page, "settings")
    await keep(page, "settings-phone", PHONE)
    await page.keyboard.press("Enter")
    await ask(page, "Hello")
    await playwright.expect(page.locator(".meta")).to_contain_text("4 tokens")
    body = world.endpoint.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Answer briefly."}
    assert (body["temperature"], body["max_tokens"]) == (0.2, 64)
    await page.reload()
    await page.get_by_role("button", name="Settings, changed").click()
    await page.get_by_role("button", name="Reset").click()
    await page.keyboard.press("Escape")
    assert await page.get_by_role("button", name="Settings, changed").count() == 1, "Escape changes nothing"


async def test_conversations_are_kept_renamed_and_deleted(
    page: "playwright.Page", context: "playwright.BrowserContext", world: World
) -> None:
    for question in ("How do I return shoes?", "Where is the workshop?"):
        await page.get_by_role("button", name="New chat").click()
        await ask(page, question)
        await playwright.expect(page.locator(".meta")).to_contain_text("4 tokens")
    await page.reload()
    await playwright.expect(page.locator(".prompt")).to_contain_text("Where is the workshop?")
    names = page.locator("#list .name")
    await playwright.expect(names).to_have_text(["Where is the workshop?", "How do I return shoes?"])
    await page.get_by_role("button", name="How do I return shoes?", exact=True).click()
    await playwright.expect(page.locator(".answer .text")).to_have_text("Yes, of course.")
    await page.locator("#list li").nth(1).hover()
    await page.get_by_role("button", name="Rename How do I return shoes?").click()
    await page.get_by_label("Name of the conversation").fill("Shoes")
    await page.keyboard.press("Enter")
    await playwright.expect(names).to_have_text(["Where is the workshop?", "Shoes"])
    await page.locator("#list li").nth(1).hover()
    await page.get_by_role("button", name="Delete Shoes").click()
    await playwright.expect(names).to_have_count(1)
    await keep(page, "deleted")
    await page.get_by_role("button", name="Undo").click()
    await playwright.expect(page.locator(".prompt")).to_contain_text("How do I return shoes?")
    other = await context.new_page()
    await other.goto(f"{world.url}/chat")
    await playwright.expect(other.get_by_role("dialog", name="API key")).to_be_visible()
    assert world.key not in await other.evaluate("JSON.stringify({...localStorage})"), "the key was kept"
    await page.get_by_role("button", name="Delete all").click()
    await playwright.expect(other.locator("#list .name")).to_have_count(0)
    assert await page.evaluate("Object.keys(localStorage).length") == 0


async def test_a_full_browser_loses_its_oldest_conversation(page: "playwright.Page") -> None:
    await ask(page, "The oldest " * 2000)
    await playwright.expect(page.locator(".meta")).to_contain_text("4 tokens")
    await page.evaluate("localStorage.setItem('of another page', 'x'.repeat(5 * 1024 * 1024 - 35000))")
    await page.get_by_role("button", name="New chat").click()
    await ask(page, "The newest " * 2000)
    await playwright.expect(page.locator("#toast")).to_contain_text("the oldest conversations were removed")
    await playwright.expect(page.locator("#list .name")).to_have_count(1)


async def test_left_out_messages_and_cut_answers_are_told(page: "playwright.Page") -> None:
    async def cut(route: "playwright.Route") -> None:
        events = [
            event([{"index": 0, "delta": {"content": "So"}, "finish_reason": None}]),
            event([{"index": 0, "delta": {}, "finish_reason": "length"}]) + b"data: [DONE]\n\n",
        ]
        headers = {"content-type": "text/event-stream", "x-dropped-messages": "6"}
        await route.fulfill(status=200, headers=headers, body=b"".join(events))

    await page.route("**/v1/chat/completions", cut)
    await ask(page, "Hello")
    await playwright.expect(page.locator(".meta")).to_contain_text("6 earlier messages left out")
    await playwright.expect(page.locator(".meta")).to_contain_text("cut off at the longest answer")


async def test_versions_can_be_compared_and_a_model_that_has_gone_is_named(page: "playwright.Page") -> None:
    listing = {"id": "support", "base_model": "org/Base-1B", "context_length": 2048, "versions": ["8", "7"]}

    others = [{"id": "base-1b"}]

    async def listed(route: "playwright.Route") -> None:
        await route.fulfill(json={"object": "list", "data": [listing, *others]})

    await page.route("**/v1/models", listed)
    await page.reload()
    await page.locator("#text:focus").wait_for()
    model = page.get_by_role("combobox", name="Model").first
    assert await model.locator("option").all_inner_texts() == ["support", "support@8", "support@7", "base-1b"]
    await playwright.expect(page.locator("#lead")).to_have_text(
        "Fine-tuned from org/Base-1B. It reads up to 2,048 tokens."
    )
    await page.get_by_role("button", name="Compare two models").click()
    second = page.get_by_role("combobox", name="Second model")
    await playwright.expect(second).to_have_value("base-1b")  # the base, if it is live
    await playwright.expect(page.locator("#note")).to_be_hidden()
    others.clear()
    await page.reload()
    await page.locator("#text:focus").wait_for()
    await page.get_by_role("button", name="Compare two models").click()
    await playwright.expect(second).to_have_value("support@7")  # else the version before
    await page.get_by_role("button", name="Compare two models").click()
    await model.select_option("support@7")
    await ask(page, "Hello")
    await playwright.expect(page.get_by_role("alert")).to_be_visible()  # here is no such version: the API says so
    listing["versions"] = []
    await page.reload()
    await playwright.expect(model.locator("option:checked")).to_have_text("support@7 (not live)")


async def test_a_wrong_key_is_asked_for_again_and_a_right_one_lasts_for_the_tab(
    context: "playwright.BrowserContext", world: World
) -> None:
    page = await context.new_page()
    await page.goto(f"{world.url}/chat")
    await keep(page, "key")
    await page.get_by_placeholder("Paste the key").fill("wrong")
    await page.keyboard.press("Enter")
    await playwright.expect(page.get_by_role("alert")).to_contain_text("not one that this app knows")
    await keep(page, "wrong-key-phone", PHONE)
    await page.get_by_placeholder("Paste the key").fill(world.key)
    await page.keyboard.press("Enter")
    await page.locator("#text:focus").wait_for()
    await page.reload()
    await page.locator("#text:focus").wait_for()
    await page.set_viewport_size(DESKTOP)
    await page.get_by_role("button", name="API key").click()
    await page.get_by_role("button", name="Forget key").click()
    assert await page.evaluate("sessionStorage.getItem('key')") is None
    with pytest.raises(playwright.Error, match="TrustedHTML"):  # whatever a later change of the page may try
        await page.evaluate("document.body.innerHTML = '<b>bold</b>'")


async def test_the_page_notices_the_first_model(page: "playwright.Page", world: World) -> None:
    from function_app import live

    live._by_loop.clear()
    world.container.records.clear()
    await page.clock.install()
    await page.reload()
    await playwright.expect(page.get_by_role("heading")).to_have_text("No model is live yet")
    await keep(page, "no-model")
    live._by_loop.clear()
    world.container.put_live("support", world.endpoint.uri)
    await page.clock.run_for(6000)
    await page.locator("#text:focus").wait_for()


async def test_it_can_be_used_by_keyboard_alone(page: "playwright.Page", world: World) -> None:
    await page.keyboard.type("Hi")
    reached = []
    for _ in range(16):
        reached.append(await page.evaluate("document.activeElement.id"))
        await page.keyboard.press("Tab")
    order = ["text", "send", "", "fresh", "key", "model-0", "pair", "set", "scroll", "text", "send"]
    assert [name for name in reached if name][:10] == [name for name in order if name], reached
    await page.get_by_label("Message").focus()
    await page.keyboard.press("Enter")
    await playwright.expect(page.locator(".meta")).to_contain_text("4 tokens")
    await playwright.expect(page.get_by_label("Message")).to_be_focused()


async def test_the_drawer_of_a_phone_opens_and_closes_by_keyboard(page: "playwright.Page", world: World) -> None:
    await ask(page, "Where is the workshop?")
    await playwright.expect(page.locator(".meta")).to_contain_text("4 tokens")
    await page.set_viewport_size(PHONE)
    await page.get_by_role("button", name="Conversations").focus()
    await page.keyboard.press("Enter")
    await playwright.expect(page.get_by_role("dialog", name="Conversations")).to_be_visible()
    await keep(page, "drawer-phone", PHONE)
    await page.keyboard.press("Escape")
    await playwright.expect(page.get_by_role("dialog", name="Conversations")).to_be_hidden()
    await playwright.expect(page.get_by_role("button", name="Conversations")).to_be_focused()


async def test_a_finger_finds_everything_on_a_phone(browser: "playwright.Browser", world: World) -> None:
    phone = await browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
    page = await phone.new_page()
    await page.goto(f"{world.url}/chat")
    await page.get_by_placeholder("Paste the key").fill(world.key)
    await page.get_by_role("button", name="Use key").tap()
    await page.get_by_role("button", name="Compare two models").tap()
    await page.get_by_label("Message").fill("Where is the workshop?")
    await page.keyboard.press("Enter")
    await page.keyboard.type("And when is it open?")  # Enter starts a new line: there is no Shift + Enter here
    world.endpoint.words = words_of(WORDS)
    await page.get_by_role("button", name="Send").tap()
    await playwright.expect(page.locator(".prompt")).to_have_text("Where is the workshop?\nAnd when is it open?")
    await playwright.expect(page.locator(".fact:text('4 tokens')")).to_have_count(2)
    small = await page.evaluate(
        "[...document.querySelectorAll('button, select, #sides label')].filter((e) => e.checkVisibility())"
        ".filter((e) => { const box = e.getBoundingClientRect(); return Math.min(box.width, box.height) < 43.9; })"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert small == []
    await keep(page, "touch", PHONE)
    await page.get_by_role("button", name="Conversations").tap()
    await playwright.expect(page.get_by_role("button", name="Rename Where is the workshop?")).to_be_visible()
    await keep(page, "touch-drawer", PHONE)
    await phone.close()


async def test_nothing_moves_for_those_who_asked_for_that(page: "playwright.Page", world: World) -> None:
    world.endpoint.handler = gate = Gate([], ["Now"])
    motion = "getComputedStyle(document.querySelector('.waiting .text'), '::before').animationName"
    await ask(page, "Hello")
    await page.locator(".waiting").wait_for()
    assert await page.evaluate(motion) == "breathe"
    await page.emulate_media(reduced_motion="reduce")
    assert await page.evaluate(motion) == "none"
    gate.open.set()
    await playwright.expect(page.locator(".answer .text")).to_have_text("Now")
