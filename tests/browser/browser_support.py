"""What the browser tests share: Chromium, a gated model, and the checks that every kept screenshot passes."""

import asyncio
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

# WCAG 2.2, success criteria 1.4.3 and 1.4.11: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
CONTRAST = """
() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const name = (e) => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "") + "." + e.className + " " + (e.textContent || "").slice(0, 30);
  const found = [], seen = { texts: 0, edges: 0 };
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e);
    if (!e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || e.disabled || e.closest(".unseen, option, svg[hidden]")) continue;
    const text = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const placeholder = e.placeholder && !e.value && !e.disabled;
    const colour = placeholder ? getComputedStyle(e, "::placeholder").color : style.color;
    if (text || placeholder || e.matches("svg, select")) {
      const least = e.matches("svg") ? 3 : 4.5, found_ratio = ratio(over(parse(colour), ground(e)), ground(e));
      seen.texts++;
      if (found_ratio < least) found.push(name(e) + ": " + found_ratio.toFixed(2));
    }
    if (e.matches("#ask, input:not([type=radio]), dialog textarea")) {
      const found_ratio = ratio(parse(style.borderTopColor), ground(e.parentElement));
      seen.edges++;
      if (found_ratio < 3) found.push("edge of " + name(e) + ": " + found_ratio.toFixed(2));
    }
  }
  return { found, seen };
}
"""
UNNAMED = """
() => [...document.querySelectorAll("button, select, input, textarea, dialog, [tabindex='0']")].filter((e) => e.checkVisibility())
  .filter((e) => !(e.textContent.trim() || e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby"))).map((e) => e.outerHTML.slice(0, 90))
"""


async def keep(page: Any, name: str, size: dict[str, int] = DESKTOP) -> None:
    """Save a screenshot in each colour scheme; what it shows must be readable, named and within the screen."""
    OUTPUT.mkdir(exist_ok=True)
    await page.set_viewport_size(size)
    assert await page.evaluate(UNNAMED) == [], f"{name}: these have no name"
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
    for scheme in ("dark", "light"):
        await page.emulate_media(color_scheme=scheme)
        contrast = await page.evaluate(CONTRAST)
        assert contrast["seen"]["texts"] > 3
        assert contrast["found"] == [], f"{name}, {scheme}: too little contrast"
        await page.screenshot(path=OUTPUT / f"chat-{name}-{scheme}.png")


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
