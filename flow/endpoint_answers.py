"""Reading what an endpoint answers: a completion, a stream of chunks, or a refusal."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from endpoint_errors import EndpointAnswerInvalid, EndpointRefused

LONGEST_ERROR_BYTES = 64 * 1024
LAST_BYTES_SECONDS = 0.1
# What Python's servers write for the logarithm of nothing is no JSON, and other clients' parsers stop at it. OpenAI has
# -9999 there.
_decode = json.JSONDecoder(parse_constant={"-Infinity": -9999.0}.get).decode


async def read_json(response: aiohttp.ClientResponse) -> Any:
    """Return the JSON value of a 200 answer. Raises EndpointAnswerInvalid when it is none."""
    try:
        return _decode((await response.read()).decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise EndpointAnswerInvalid("The model's endpoint answered with something that is not JSON.") from error


async def read_events(response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of a server-sent-event answer up to ``[DONE]``.

    Raises EndpointRefused for an error sent as an event and EndpointAnswerInvalid for a stream that stops
    before it has said why it finished.
    """
    finished = False
    try:
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue  # blank lines, comments that keep the connection open, event names
            data = line[5:].strip()
            if data == b"[DONE]":
                await _read_to_the_end(response)
                return
            chunk = _parse_chunk(data)
            finished = finished or any(choice.get("finish_reason") for choice in chunk.get("choices") or ())
            yield chunk
    except LineTooLong as error:
        raise EndpointAnswerInvalid("The model's endpoint sent an event that is too long to read.") from error
    if not finished:
        raise EndpointAnswerInvalid("The model's endpoint ended its stream in the middle of an answer.")


async def _read_to_the_end(response: aiohttp.ClientResponse) -> None:
    """Only a response that was read to its end gives its connection back to the pool."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_BYTES_SECONDS):
            await response.content.read()


def _parse_chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = _decode(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise EndpointAnswerInvalid("The model's endpoint sent an event that is not JSON.") from error
    if not isinstance(chunk, dict):
        raise EndpointAnswerInvalid("The model's endpoint sent an event that is not an object.")
    if chunk.get("error") is not None:
        message, param, code = _error_fields(chunk)
        raise EndpointRefused(
            message or "The model's endpoint failed in the middle of its answer.", param=param, code=code
        )
    choices = chunk.get("choices")
    if choices and not (isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)):
        raise EndpointAnswerInvalid("The model's endpoint sent an event whose choices are not a list of objects.")
    return chunk


async def read_error(response: aiohttp.ClientResponse) -> EndpointRefused:
    """Return the exception for an answer that is not 200.

    Azure ML hides the container's status behind a 424 and tells it in a header:
    https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints
    """
    status = response.status
    model_status = response.headers.get("ms-azureml-model-error-statuscode", "")
    if status == 424 and model_status.isdecimal():
        status = int(model_status)
    text = (await _read_at_most(response.content, LONGEST_ERROR_BYTES)).decode("utf-8", "replace")
    try:
        message, param, code = _error_fields(json.loads(text))
    except (ValueError, RecursionError):
        message, param, code = text.strip()[:500], None, None
    return EndpointRefused(
        message or f"The model's endpoint answered {status}.",
        upstream_status=status,
        retry_after=response.headers.get("Retry-After"),
        param=param,
        code=code,
    )


async def _read_at_most(content: aiohttp.StreamReader, most: int) -> bytes:
    """The first ``most`` bytes. One ``read`` gives only what has arrived by then."""
    read = bytearray()
    while len(read) < most and (part := await content.read(most - len(read))):
        read += part
    return bytes(read)


def _error_fields(answer: Any) -> tuple[str, str | None, str | None]:
    """Message, param and code out of OpenAI's, Azure's or FastAPI's way of writing an error."""
    if not isinstance(answer, dict):
        return "", None, None
    error = answer.get("error", answer)
    if isinstance(error, str):
        return error, None, None
    if not isinstance(error, dict):
        return "", None, None
    detail = error.get("message") or error.get("detail") or ""
    if isinstance(detail, list):  # FastAPI: one entry for each field; "input" would repeat the prompt
        detail = "; ".join(
            f"{'.'.join(map(str, entry.get('loc') or ()))}: {entry.get('msg')}"
            for entry in detail
            if isinstance(entry, dict)
        )
    param, code = error.get("param"), error.get("code")
    return (
        detail if isinstance(detail, str) else "",
        param if isinstance(param, str) else None,
        str(code) if isinstance(code, str | int) else None,
    )
