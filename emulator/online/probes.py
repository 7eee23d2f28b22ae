"""Liveness and readiness probes of a deployment's container."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

from ..durations import seconds
from ..store import Json

# What the service shows for a deployment that names none.
DEFAULTS = {
    "failureThreshold": 30,
    "successThreshold": 1,
    "timeout": "PT2S",
    "period": "PT10S",
    "initialDelay": "PT10S",
}


@dataclass(frozen=True)
class Probe:
    """An HTTP GET that must succeed; times in seconds."""

    path: str
    initial_delay: float
    period: float
    timeout: float
    failure_threshold: int
    success_threshold: int

    @property
    def limit(self) -> float:
        """How long a container may take to its first success."""
        return self.initial_delay + self.period * self.failure_threshold

    async def succeeds(self, session: aiohttp.ClientSession, address: str) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=self.timeout)
            async with session.get(address + self.path, timeout=timeout, allow_redirects=False) as response:
                return 200 <= response.status < 400
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def changes(self, session: aiohttp.ClientSession, address: str) -> AsyncIterator[bool]:
        """Probe a container that has been ready once, for ever; yield False when it is no longer, True when again."""
        good, streak = True, 0
        while True:
            await asyncio.sleep(self.period)
            streak = 0 if await self.succeeds(session, address) == good else streak + 1
            if streak >= (self.failure_threshold if good else self.success_threshold):
                good, streak = not good, 0
                yield good


def probe(path: str, settings: Json | None) -> Probe:
    """A probe with ``settings`` as in a deployment's body. Raises ValueError for a malformed one."""
    given = {**DEFAULTS, **{key: value for key, value in (settings or {}).items() if value is not None}}
    return Probe(
        path,
        seconds(given["initialDelay"]),
        max(seconds(given["period"]), 0.1),
        max(seconds(given["timeout"]), 0.1),
        int(given["failureThreshold"]),
        int(given["successThreshold"]),
    )
