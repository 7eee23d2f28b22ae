"""Node: check the answer, put the public model name on it, and learn from it how long the model's tokens are."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import chat_steps
from promptflow.core import tool


@tool  # type: ignore[untyped-decorator]
async def finish(
    answer: dict[str, Any] | AsyncGenerator[dict[str, Any], None], call: chat_steps.ChatCall
) -> dict[str, Any] | AsyncIterator[dict[str, Any]]:
    """See chat_steps.finish."""
    return await chat_steps.finish(answer, call)
