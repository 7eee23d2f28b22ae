"""Whoever waits for an answer is watched, whatever the web server tells before it tells that they have left."""

import asyncio
from typing import Any

import pytest

from function_app import chat_leaving
from function_app.openai_api import ApiError


@pytest.fixture(autouse=True)
def _watched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_leaving, "WATCH_AFTER_SECONDS", 0)


async def test_the_end_of_the_body_does_not_end_the_watch() -> None:
    """uvicorn may tell of an empty rest of the body once more, before it tells that the caller has left."""
    told = [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
    closed = asyncio.Event()

    async def receive() -> Any:
        return told.pop(0)

    async def answer() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            closed.set()

    with pytest.raises(ApiError) as error:
        await asyncio.wait_for(chat_leaving.unless_caller_leaves(receive, answer()), 5)
    assert (error.value.status, closed.is_set()) == (499, True)


async def test_an_answers_own_time_limit_is_not_taken_for_the_callers_leaving() -> None:
    async def receive() -> Any:
        await asyncio.sleep(30)

    async def answer() -> None:
        await asyncio.sleep(0.02)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await chat_leaving.unless_caller_leaves(receive, answer())
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "the watch was left behind"
