"""Node: send the call to the model's online endpoint."""

from collections.abc import AsyncGenerator
from typing import Any

from endpoint import EndpointCall, endpoint_client
from promptflow.core import tool


@tool  # type: ignore[untyped-decorator]
async def call_endpoint(call: EndpointCall) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]:
    """Return the chat.completion or, when the call streams, a generator of its chunks.

    Raises EndpointError. The time limits live in here: cancelling a running flow from outside ends the process.
    """
    client = await endpoint_client()
    if call.body.get("stream"):
        return await client.stream(call)
    return await client.complete(call)
