"""The chat page as it is served: one document, and the headers that let it run only its own style and scripts."""

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

STATIC = Path(__file__).resolve().parent / "static"
STYLE = re.compile(r'<link rel="stylesheet" href="([\w-]+\.css)">')
SCRIPTS = re.compile(r'(?:<script src="[\w-]+\.js"></script>\s*)+')


@lru_cache(maxsize=1)
def read_page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers. Each inline style and script is allowed by its hash, and nothing else.

    Its parts are put inline: one request fetches the page, which matters where each may start a worker.
    """
    page = (STATIC / "chat.html").read_text(encoding="utf-8")
    page = STYLE.sub(lambda link: f"<style>{_read(link[1])}</style>", page)
    page = SCRIPTS.sub(_one_script, page)
    policy = [
        "default-src 'none'",
        f"style-src {_hashes(page, 'style')}",
        f"script-src {_hashes(page, 'script')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # innerHTML and its like throw: what a model says cannot become markup
        "trusted-types 'none'",
    ]
    return page, {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _one_script(tags: re.Match[str]) -> str:
    parts = re.findall(r'src="(.+?)"', tags[0])
    return f"<script>{''.join(map(_read, parts))}</script>\n"


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _hashes(page: str, element: str) -> str:
    """Hashes as CSP wants them: https://www.w3.org/TR/CSP3/#grammardef-hash-source"""
    blocks = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks
    )
