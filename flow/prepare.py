"""Node: turn the flow's inputs into one call of the endpoint."""

from typing import Any

import chat_steps
from promptflow.core import tool


@tool  # type: ignore[untyped-decorator]
async def prepare(
    messages: list[dict[str, Any]],
    parameters: dict[str, Any],
    model: str,
    stream: bool,
    endpoint: dict[str, Any],
    rules: dict[str, Any],
) -> chat_steps.ChatCall:
    """See chat_steps.prepare."""
    return await chat_steps.prepare(messages, parameters, model, stream, endpoint, rules)
