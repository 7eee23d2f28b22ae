"""What the browser tests share: Chromium, a gated model, and the checks that every kept screenshot passes."""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

from aiohttp import web
from chat_support import event

OUTPUT = Path(__file__).resolve().parent / "output"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1180, "height": 780}, {"width": 390, "height": 800}

WORDS = (
    "You can return anything within 30 days, as long as it is unused.\n\n"
    "1. Open your order and choose Return.\n2. Print the label.\n3. Drop the parcel off; the refund takes two days."
)
CHECKS = (Path(__file__).resolve().parent / "checks.js").read_text(encoding="utf-8")


async def keep(page: Any, name: str, size: dict[str, int] = DESKTOP) -> None:
    """Save a screenshot in each colour scheme; what it shows must be readable, named and within the screen."""
    OUTPUT.mkdir(exist_ok=True)
    await page.set_viewport_size(size)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
    for scheme in ("dark", "light"):
        await page.emulate_media(color_scheme=scheme)
        checks = await page.evaluate(CHECKS)
        assert checks["looked"] > 5
        assert checks["poor"] == [], f"{name}, {scheme}: too little contrast"
        assert checks["unnamed"] == [], f"{name}: these controls have no name"
        await page.screenshot(path=OUTPUT / f"chat-{name}-{scheme}.png")


async def ask(page: Any, text: str) -> None:
    """Send ``text`` as a reader would."""
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")


def words_of(text: str) -> list[str]:
    """``text`` in the pieces in which a model would say it."""
    return re.findall(r"\s*\S+", text)


class Gate:
    """A model that says some of its words, and the rest when ``open`` is set: nothing hangs on the machine's speed."""

    def __init__(self, before: list[str], after: list[str]) -> None:
        self.before, self.after, self.open = before, after, asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in self.before:
            await response.write(event([{"index": 0, "delta": {"content": word}, "finish_reason": None}]))
        await self.open.wait()
        for word in self.after:
            await response.write(event([{"index": 0, "delta": {"content": word}, "finish_reason": None}]))
        await response.write(event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        usage = {"prompt_tokens": 31, "completion_tokens": 48, "total_tokens": 79}
        await response.write(event([], usage=usage) + b"data: [DONE]\n\n")
        return response
