"""The load generator of bench/chat.py, in a process of its own: so many requests at a time, over kept connections.

It speaks just enough HTTP/1.1 that its own share of each figure is small, and the same for everyone who is measured.

Run as: python -m bench.chat_load. Each line of its input is an Order, each line of its output what came of it, as JSON.
"""

import asyncio
import json
import re
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(rb'"content": ?"[^"]')  # the first piece of the text of a stream
CONNECT_SECONDS = 20


@dataclass(frozen=True)
class Target:
    """Who is asked, and what. A good answer holds ``expected``; a stream, ``end``."""

    name: str
    port: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    parameters: str = ""  # the field of the body for max_tokens and the like; empty: the body itself
    certificates: str = ""  # the file of those to trust; empty: plain HTTP
    expected: str = "second floor"
    end: str = "[DONE]"

    def content(self, stream: dict[str, Any] | None) -> str:
        """The body of a request; ``stream``: max_tokens and the like of one for a stream."""
        if stream is None:
            return json.dumps(self.body)
        return json.dumps({**self.body, "stream": True, **({self.parameters: stream} if self.parameters else stream)})


@dataclass(frozen=True)
class Order:
    """``requests`` in all, or as many as there is time for in ``seconds``; ``at_once`` connections."""

    target: Target
    at_once: int = 1
    requests: int = 0
    seconds: float = 0.0
    stream: dict[str, Any] | None = None  # for streams: the fields that say how many chunks, and how fast
    warm_up: bool = True  # ask once over each connection before the clock starts
    limit_seconds: float = 120.0  # for one answer


@dataclass
class Result:
    """What came of an order: milliseconds of each good answer, in ``first`` until a stream's first token."""

    seconds: float = 0.0
    total: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)  # of streams, first token to end
    failures: list[str] = field(default_factory=list)

    @property
    def open_at_once(self) -> int:
        """How many streams were open, at the highest."""
        steps = sorted([(at, 1) for at, _ in self.spans] + [(at, -1) for _, at in self.spans])
        most = now = 0
        for _, step in steps:
            now += step
            most = max(most, now)
        return most


class Connection:
    """One HTTP/1.1 connection, opened again when the server has closed it."""

    def __init__(self, order: Order) -> None:
        target = order.target
        body = target.content(order.stream)
        lines = [f"POST {target.path} HTTP/1.1", f"Host: localhost:{target.port}", "Content-Type: application/json"]
        lines += ["Accept: text/event-stream"] if order.stream else []
        lines += [f"{name}: {value}" for name, value in target.headers.items()]
        lines += [f"Content-Length: {len(body.encode())}", "", body]
        self._request = "\r\n".join(lines).encode()
        self._order = order
        self._context = ssl.create_default_context(cafile=target.certificates) if target.certificates else None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        self._streams = await asyncio.wait_for(
            asyncio.open_connection("localhost", self._order.target.port, ssl=self._context), CONNECT_SECONDS
        )

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None

    async def ask(self, result: Result) -> None:
        """Send the request, note how long it took or why it failed."""
        try:
            async with asyncio.timeout(self._order.limit_seconds):
                if self._streams is None:
                    await self.open()
                await self._ask(result)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            result.failures.append(f"{type(error).__name__}: {error}"[:200])
            self.close()

    async def _ask(self, result: Result) -> None:
        assert self._streams is not None
        reader, writer = self._streams
        began = time.perf_counter()
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body, first = bytearray(), 0.0
        length = re.search(rb"content-length: *(\d+)", head)
        if length:
            body += await reader.readexactly(int(length[1]))
        else:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
                if not first and self._order.stream is not None and TOKEN.search(body):
                    first = time.perf_counter()
            await reader.readuntil(b"\r\n")
        ended = time.perf_counter()
        target, stream = self._order.target, self._order.stream is not None
        wanted = target.end if stream else target.expected
        if not head.startswith(b"http/1.1 200") or wanted.encode() not in body:
            raise ValueError(f"{head[:40]!r} {bytes(body[:120])!r}")
        if b"connection: close" in head:
            self.close()
        if stream and not first:
            raise ValueError("the stream had no token")
        result.total.append((ended - began) * 1000)
        if stream:
            result.first.append((first - began) * 1000)
            result.spans.append((first, ended))


async def carry_out(order: Order) -> Result:
    """Do what ``order`` says; never raises for what the target does."""
    connections = [Connection(order) for _ in range(order.at_once)]
    result = Result()
    if order.warm_up:
        await asyncio.gather(*(connection.ask(Result()) for connection in connections))
    began = time.perf_counter()
    left = order.requests

    async def work(connection: Connection) -> None:
        nonlocal left
        while left > 0 if order.requests else time.perf_counter() - began < order.seconds:
            left -= 1
            await connection.ask(result)

    await asyncio.gather(*map(work, connections))
    result.seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return result


def main() -> None:
    """Read orders until the input ends."""
    for line in sys.stdin:
        given = json.loads(line)
        result = asyncio.run(carry_out(Order(**{**given, "target": Target(**given["target"])})))
        print(json.dumps(vars(result)), flush=True)


if __name__ == "__main__":
    main()
