"""What stands around the conversation on the chat page: settings, history, models, the key; keyboard and finger."""

import pytest
from browser_support import CHROMIUM, DESKTOP, PHONE, WORDS, Gate, ask, keep, words_of
from chat_support import World, event

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: pip install playwright")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on the PATH: apt-get install chromium to run the browser tests"
    ),
    pytest.mark.asyncio(loop_scope="package"),
]


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
