"""Node: send the call to the model's online endpoint."""

from collections.abc import AsyncGenerator
from typing import Any

from endpoint import EndpointCall, endpoint_client
from endpoint_errors import EndpointAnswerInvalid
from promptflow.core import tool
from scoring_payload import MLFLOW, as_chunks, to_completion


@tool  # type: ignore[untyped-decorator]
async def call_endpoint(call: EndpointCall) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]:
    """Return the chat.completion or, when the call streams, a generator of its chunks.

    Raises EndpointError. The time limits live in here: cancelling a running flow from outside ends the process.
    """
    client = await endpoint_client()
    if call.place.wire == MLFLOW:
        completion = to_completion(await client.complete(call), call.model, call.stop)
        return as_chunks(completion) if call.stream else completion
    if call.stream:
        return await client.stream(call)
    answer = await client.complete(call)
    if not isinstance(answer, dict):
        raise EndpointAnswerInvalid("The model's endpoint answered with JSON that is not an object.")
    return answer
