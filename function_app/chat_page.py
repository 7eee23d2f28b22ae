"""The chat page as it is served: the file, and the headers that let it run only its own style and script."""

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "static" / "chat.html"


@lru_cache(maxsize=1)
def read_page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers. Each inline style and script is allowed by its hash, and nothing else."""
    page = PAGE.read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        f"style-src {_hashes(page, 'style')}",
        f"script-src {_hashes(page, 'script')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return page, {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _hashes(page: str, element: str) -> str:
    """Hashes as CSP wants them: https://www.w3.org/TR/CSP3/#grammardef-hash-source"""
    blocks = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks
    )
