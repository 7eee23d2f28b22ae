"""Callers who leave before their answer, or in the middle of it: the endpoint is spared the rest."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from .openai_api import ApiError

# From then on it is noticed. Most answers are there before: those are not worth a task that waits for their callers.
WATCH_AFTER_SECONDS = 0.25

Answer = TypeVar("Answer")


async def unless_caller_leaves(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], answer: Awaitable[Answer]
) -> Answer:
    """Await ``answer``, whose request has been read to its end. Raises ApiError, for the log, once the caller has left.

    ``answer`` is cancelled then, which closes its connection to the endpoint. By asyncio alone: Starlette's way,
    anyio's cancel scope, acts only when the stream waits just then, and an endpoint may be too fast for that.
    """
    loop = asyncio.get_running_loop()
    watches: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(None) as limit:

            async def watch() -> None:
                if (await receive())["type"] == "http.disconnect":
                    limit.reschedule(loop.time())

            timer = loop.call_later(WATCH_AFTER_SECONDS, lambda: watches.append(loop.create_task(watch())))
            try:
                return await answer
            finally:
                timer.cancel()
                for task in watches:
                    task.cancel()
    except TimeoutError:
        if limit.expired():
            raise caller_left() from None
        raise


def caller_left() -> ApiError:
    """What the log calls it; nobody is there to read it. 499 is nginx's status for it."""
    return ApiError(499, "The caller left before the answer.", code="client_closed")
