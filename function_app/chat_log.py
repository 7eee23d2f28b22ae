"""One line in the log for each request to the chat API: who, which model, how long, how many tokens; never what."""

import logging
import re
import time
import uuid
from typing import Any

log = logging.getLogger(__name__)


class ChatLog:
    """What is known of one request so far; ``write`` says it."""

    def __init__(self, request_id: "re.Match[str] | None") -> None:
        self.request_id = request_id[0] if request_id else uuid.uuid4().hex
        self.key = "-"
        self.model = "-"  # only ever the name of a live model: what the caller sent is not logged
        self.stream = False
        self.usage: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._first_ms: float | None = None

    def first_answer(self) -> None:
        """Note that the endpoint has answered: with its first chunk, or with everything."""
        self._first_ms = self._ms()

    def write(self, status: int, code: str = "") -> None:
        """Write the line. ``status`` 499 means that the caller went away in the middle of the answer."""
        line = {
            "request": self.request_id,
            "key": self.key,
            "model": self.model,
            "status": status,
            "code": code or None,
            "stream": str(self.stream).lower(),
            "ms": f"{self._ms():.1f}",
            "first_ms": None if self._first_ms is None else f"{self._first_ms:.1f}",
            "prompt_tokens": _count(self.usage.get("prompt_tokens")),
            "completion_tokens": _count(self.usage.get("completion_tokens")),
        }
        log.info("chat %s", " ".join(f"{key}={value}" for key, value in line.items() if value is not None))

    def _ms(self) -> float:
        return (time.perf_counter() - self._started) * 1000


def _count(tokens: Any) -> int | None:
    return tokens if isinstance(tokens, int) else None
