"""Waiting that a stop can cut short."""

import asyncio


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for ``event``, at most ``seconds``; returns whether it is set."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return event.is_set()
    return True
