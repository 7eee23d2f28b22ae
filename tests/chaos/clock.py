"""The time of the schedules: it passes when nothing is due, and it is not the same for every invocation."""

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import function_app

TICK = timedelta(milliseconds=3)  # that passes whenever the app looks at its clock
LISTED = re.compile(rb"<Last-Modified>[^<]*</Last-Modified>(?P<between>.*?)<Etag>(?P<etag>[^<]*)</Etag>", re.DOTALL)


class Clock:
    """The true time ``now``, which storage writes, and the app's, which is wrong by ``skew``."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.skew = timedelta(0)
        self._written: dict[str, datetime] = {}  # by ETag

    def utc_now(self) -> datetime:
        self.now += TICK
        return self.now + self.skew

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def written(self, etag: str) -> None:
        """Storage has just written a blob."""
        self._written.setdefault(etag.strip('"'), self.now)

    def last_modified(self, etag: str) -> str | None:
        """As a header has it; None for a blob that was written by others."""
        at = self._written.get(etag.strip('"'))
        return format_datetime(at.astimezone(UTC).replace(microsecond=0), usegmt=True) if at else None

    def listing(self, body: bytes) -> bytes:
        """A list of blobs, with these times."""

        def at(match: re.Match[bytes]) -> bytes:
            known = self.last_modified(match["etag"].decode())
            if known is None:
                return match[0]
            return b"".join(
                (b"<Last-Modified>", known.encode(), b"</Last-Modified>", match["between"], b"<Etag>", match["etag"],
                 b"</Etag>")
            )  # fmt: skip

        return LISTED.sub(at, body)


@contextmanager
def everywhere(clock: Clock) -> Iterator[None]:
    """Every module of the app looks at ``clock``."""
    replaced = [(module, module.utc_now) for module in modules() if hasattr(module, "utc_now")]
    for module, _ in replaced:
        module.utc_now = clock.utc_now
    try:
        yield
    finally:
        for module, real in replaced:
            module.utc_now = real


def modules() -> list[object]:
    """All modules of the app, those too that it imports when they are needed."""
    names = [each.name for each in pkgutil.walk_packages(function_app.__path__, "function_app.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return [module for name, module in sys.modules.items() if name.startswith("function_app.")]
