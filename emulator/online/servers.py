"""What serves a deployment: its instances, and which of them takes the next request."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from ..store import Json
from .instances import Instance

# The service takes 2 x max_concurrent_requests_per_instance x instance_count requests at once, its documentation says.
PENDING_FACTOR = 2
DRAIN_MARGIN = 5.0  # seconds


class NotServing(Exception):
    """No instance is ready."""


class TooManyRequests(Exception):
    """All places are taken, and so are those of the queue."""


class Server:
    """The instances that were started from one state (``spec``) of a deployment; ``folder`` holds their files."""

    def __init__(self, spec: Json, folder: Path, make: Callable[["Server"], Instance]) -> None:
        self.spec = spec
        self.folder = folder
        self.instances: list[Instance] = []
        self.longest = 0.0  # seconds that a request which it took may last
        self._make = make
        self._pending = 0
        self._waiting = 0
        self._next = 0
        self._changed = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> list[Instance]:
        return [instance for instance in self.instances if instance.ready]

    async def grow(self, count: int) -> None:
        """Start so many more, at once. Raises StartError, and then none of them is left."""
        new = [self._make(self) for _ in range(count)]
        try:
            await asyncio.gather(*(instance.start() for instance in new))
        except BaseException:
            await asyncio.gather(*(instance.stop() for instance in new), return_exceptions=True)
            raise
        self.instances += new
        self.notify()

    async def shrink(self, count: int) -> None:
        """Let so many finish what they work on, for as long as their requests were promised, and end them."""
        leaving = self.instances[len(self.instances) - count :]
        del self.instances[len(self.instances) - count :]
        self.notify()  # who waits for one of these looks elsewhere
        try:
            async with self._changed:
                idle = self._changed.wait_for(lambda: not any(instance.in_flight for instance in leaving))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(idle, self.longest + DRAIN_MARGIN)
        finally:
            await asyncio.gather(*(instance.stop() for instance in leaving))

    def drop(self, instance: Instance) -> None:
        """Forget an instance that was given up."""
        if instance in self.instances:
            self.instances.remove(instance)
            self.notify()

    async def take(self, places: int, wait: float) -> Instance:
        """The instance for one more request, in turn; ``release`` gives it back.

        ``places`` is how many requests an instance works on at once; as many more wait, ``wait`` seconds at most.
        Raises NotServing, TooManyRequests, or TimeoutError.
        """
        if not self.ready:
            raise NotServing
        if self._pending >= PENDING_FACTOR * places * len(self.ready):
            raise TooManyRequests
        self._pending += 1
        try:
            instance = None if self._waiting else self._free(places)  # who came first is served first
            if instance is None:
                instance = await self._wait_for_place(places, wait)
            instance.in_flight += 1
        except BaseException:
            self._pending -= 1
            raise
        return instance

    def release(self, instance: Instance) -> None:
        instance.in_flight -= 1
        self._pending -= 1
        self.notify()

    def notify(self) -> None:
        """Wake those that wait for a place, or for an instance to become idle."""
        task = asyncio.create_task(self._notify())
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_for_place(self, places: int, wait: float) -> Instance:
        self._waiting += 1
        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._some_free(places)), wait)
                if instance := self._free(places):
                    return instance
        finally:
            self._waiting -= 1
        raise NotServing

    def _some_free(self, places: int) -> bool:
        return not self.ready or any(instance.in_flight < places for instance in self.ready)

    def _free(self, places: int) -> Instance | None:
        """The next of the ready instances that has a place, round and round."""
        ready = self.ready
        for offset in range(len(ready)):
            instance = ready[(self._next + offset) % len(ready)]
            if instance.in_flight < places:
                self._next = (self._next + offset + 1) % len(ready)
                return instance
        return None
