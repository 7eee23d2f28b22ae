"""What the flow does with a chat request, in three steps and without Prompt Flow: its nodes only call these."""

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from content_filter import check_severity
from context_window import BLIND_RATIO, FIRST_RATIO, Window, is_system
from endpoint import EndpointCall, endpoint_client
from endpoint_errors import EndpointAnswerInvalid, EndpointRefused
from place import Place, read_place
from rules import Rules, read_rules
from scoring_payload import MLFLOW, as_chunks, to_completion, to_payload

REPEATS = 3  # of a call whose messages are too long, with fewer of them; a refusal is cheap, nothing was generated
TOO_LONG = "context_length_exceeded"  # OpenAI's code, and that of serving/
# vLLM has no code for it. Its words, by version: vllm/renderers/params.py and vllm/entrypoints/openai/serving_engine.py
TOO_LONG_WORDS = re.compile(
    r"maximum context length|model's context length is only|longer than the (?:maximum model|model's context) length"
)
DROPPED = "dropped_messages"


@dataclass(frozen=True)
class ChatCall(EndpointCall):
    """A call of the endpoint, and what of the chat it sends.

    ``window`` changes when the endpoint refuses the messages for their length; None: they are all sent or none.
    ``started`` is there when the answer is to say how long it took.
    """

    window: Window | None = None
    started: float | None = None


async def prepare(
    messages: list[dict[str, Any]],
    parameters: dict[str, Any],
    model: str,
    stream: bool,
    endpoint: dict[str, Any],
    rules: dict[str, Any],
) -> ChatCall:
    """Return what to send where. Raises EndpointNotConfigured when there is nowhere to send it, ContentRefused and
    ContentFilterUnavailable when the model's rules forbid to send it."""
    started = time.perf_counter()
    place, rule = read_place(endpoint), read_rules(rules)
    if rule.max_severity is not None:
        await check_severity(messages, rule.max_severity)
    if rule.system_prompt and not any(map(is_system, messages)):
        messages = [{"role": "system", "content": rule.system_prompt}, *messages]
    window = _window(messages, parameters, model, place, rule)
    if window:
        window.fit()
        messages = window.messages
    if place.wire == MLFLOW:
        body = to_payload(messages, parameters)
    else:
        body = {**parameters, "messages": messages}
        if model:
            body["model"] = model
        if stream:
            body["stream"] = True
    return ChatCall(place, body, stream, model, parameters.get("stop"), window, started if rule.timed else None)


def _window(
    messages: list[dict[str, Any]], parameters: dict[str, Any], model: str, place: Place, rule: Rules
) -> Window | None:
    if not (rule.trim_history and rule.context_length):
        return None
    limit = parameters.get("max_completion_tokens") or parameters.get("max_tokens")
    tools = parameters.get("tools")
    return Window(
        messages,
        rule.context_length,
        # Behind one address there may be several deployments, of one model: their tokenizers are alike.
        f"{model} {place.scoring_uri}",
        answer_tokens=limit if isinstance(limit, int) else 0,
        extra_bytes=len(json.dumps(tools)) if tools else 0,
        first_ratio=BLIND_RATIO if place.wire == MLFLOW else FIRST_RATIO,
    )


async def call_endpoint(call: ChatCall) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]:
    """Return the chat.completion or, when the call streams, a generator of its chunks.

    Raises EndpointError. The time limits live in the client: Prompt Flow's own scheduler must not be cancelled.
    """
    repeats = 0
    while True:
        try:
            return await _send(call)
        except EndpointRefused as error:
            if not _too_long(error):
                raise
            shorter = _shorter(call, error) if repeats < REPEATS else None
            if shorter is None:
                raise _with_code(call, error) from error
        call, repeats = shorter, repeats + 1


async def _send(call: ChatCall) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]:
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


def _too_long(error: EndpointRefused) -> bool:
    if error.upstream_status not in (400, None):  # without a status it is the first event of a stream
        return False
    return error.code == TOO_LONG or TOO_LONG_WORDS.search(error.message) is not None


def _shorter(call: ChatCall, error: EndpointRefused) -> ChatCall | None:
    """The call with fewer messages; None where that would not help, or there are none to leave out."""
    window = call.window
    if window is None or call.place.wire == MLFLOW:
        return None
    # vLLM refuses a limit on the answer that is longer than the context, however short the messages are.
    hopeless = window.answer_tokens >= window.context_length and error.code != TOO_LONG
    if hopeless or not window.shrink():
        return None
    return replace(call, body={**call.body, "messages": window.messages})


def _with_code(call: ChatCall, error: EndpointRefused) -> EndpointRefused:
    """The refusal with OpenAI's code where it is about length, which vLLM tells in words only."""
    dropped = call.window.dropped if call.window else 0
    tried = f" ({dropped} messages of the history were left out already.)" if dropped else ""
    param = error.param if error.param in ("max_tokens", "max_completion_tokens") else "messages"
    return EndpointRefused(f"{error.message}{tried}", upstream_status=400, param=param, code=TOO_LONG)


async def finish(
    answer: dict[str, Any] | AsyncGenerator[dict[str, Any], None], call: ChatCall
) -> dict[str, Any] | AsyncIterator[dict[str, Any]]:
    """Return ``answer`` under the model's public name. Raises EndpointAnswerInvalid if it has no choices.

    A completion, or the first chunk, says in ``dropped_messages`` how many messages of the history were left out, if
    any were; a completion says in ``seconds`` how long the flow took, if its rules ask for that.
    """
    if not isinstance(answer, dict):
        return _finish_chunks(answer, call)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise EndpointAnswerInvalid("The model's endpoint answered without any choices.")
    if not isinstance(choices[0], dict) or not isinstance(choices[0].get("message"), dict):
        raise EndpointAnswerInvalid("The model's endpoint answered without a message.")
    if call.model:
        answer["model"] = call.model
    if call.window:
        _learn(call.window, answer)
        if call.window.dropped:
            answer[DROPPED] = call.window.dropped
    if call.started is not None:
        answer["seconds"] = round(time.perf_counter() - call.started, 6)
    return answer


async def _finish_chunks(chunks: AsyncGenerator[dict[str, Any], None], call: ChatCall) -> AsyncIterator[dict[str, Any]]:
    model, window = call.model, call.window
    untold = window.dropped if window else 0
    async with aclosing(chunks):
        async for chunk in chunks:
            if model:
                chunk["model"] = model
            if untold:
                chunk[DROPPED], untold = untold, 0
            if window and chunk.get("usage"):
                _learn(window, chunk)
            yield chunk


def _learn(window: Window, answer: dict[str, Any]) -> None:
    usage = answer.get("usage")
    if isinstance(usage, dict):
        window.learn(usage.get("prompt_tokens"))
