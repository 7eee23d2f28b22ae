"""Node: send the call to the model's online endpoint."""

from collections.abc import AsyncGenerator
from typing import Any

import chat_steps
from promptflow.core import tool


@tool  # type: ignore[untyped-decorator]
async def call_endpoint(call: chat_steps.ChatCall) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]:
    """See chat_steps.call_endpoint."""
    return await chat_steps.call_endpoint(call)
