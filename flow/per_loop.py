"""One client for each event loop: made on first use, closed with the loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Protocol, TypeVar


class Closable(Protocol):
    """What has connections of an event loop."""

    async def close(self) -> Any:
        """Close the connections."""


Client = TypeVar("Client", bound=Closable)


class PerLoop(Generic[Client]):
    """The clients that ``make`` has made; connections cannot be shared between event loops."""

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._clients: dict[asyncio.AbstractEventLoop, Client] = {}
        self._closers: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}

    async def get(self) -> Client:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._make()
            # asyncio.run closes the async generators that were started on its loop: the one hook that a loop offers.
            closer = self._closers[loop] = self._close_with_loop(loop, client)
            await anext(closer)
        return client

    async def _close_with_loop(self, loop: asyncio.AbstractEventLoop, client: Client) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            del self._clients[loop], self._closers[loop]
            await client.close()
