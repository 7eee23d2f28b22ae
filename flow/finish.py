"""Node: check the answer and put the public model name on it."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from endpoint import EndpointCall
from endpoint_errors import EndpointAnswerInvalid
from promptflow.core import tool


@tool  # type: ignore[untyped-decorator]
async def finish(
    answer: dict[str, Any] | AsyncGenerator[dict[str, Any], None], call: EndpointCall
) -> dict[str, Any] | AsyncIterator[dict[str, Any]]:
    """Return ``answer`` under the model's public name. Raises EndpointAnswerInvalid if it has no choices."""
    if not isinstance(answer, dict):
        return _finish_chunks(answer, call.model)
    if not isinstance(answer.get("choices"), list) or not answer["choices"]:
        raise EndpointAnswerInvalid("The model's endpoint answered without any choices.")
    return {**answer, "model": call.model} if call.model else answer


async def _finish_chunks(chunks: AsyncGenerator[dict[str, Any], None], model: str) -> AsyncIterator[dict[str, Any]]:
    async with aclosing(chunks):
        async for chunk in chunks:
            if model:
                chunk["model"] = model
            yield chunk
