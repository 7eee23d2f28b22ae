"""The scoring payload of MLflow chat models that Azure deploys without an environment: to it, and back to a completion.

The payload is ``{"input_data": {"input_string": [messages], "parameters": {…}}, "params": {…}}`` and the answer
``{"output": text}``, all at once: whoever asked for a stream gets it in one chunk.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from endpoint_errors import EndpointAnswerInvalid, EndpointRefused

MLFLOW = "mlflow"
MAX_NEW_TOKENS = 512  # of an answer for which the caller sets no limit; the pipeline's own default is much shorter
SAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # as transformers calls them
IGNORED = {"user", "metadata", "seed", "stream_options", "parallel_tool_calls"}  # no answer depends on them
READ_HERE = {"max_tokens", "max_completion_tokens", "stop"}
# What would change the answer if it could be obeyed, with the values that ask for nothing.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
}


def to_payload(messages: list[dict[str, Any]], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the body. Raises EndpointRefused for what these deployments cannot do, as the endpoint itself would."""
    for name, value in parameters.items():
        if name not in IGNORED and name not in SAME and name not in READ_HERE and value not in HARMLESS.get(name, ()):
            raise _refused(name, f"{name} is not supported by this model's deployment (serving.server: mlflow)")
    most = parameters.get("max_completion_tokens") or parameters.get("max_tokens") or MAX_NEW_TOKENS
    settings: dict[str, Any] = {"max_new_tokens": most}
    given = {name: parameters[name] for name in SAME if name in parameters}
    if given.get("top_k") == -1:
        given["top_k"] = 0  # all of them, as transformers says it
    if given.get("temperature", 1) == 0:
        settings["do_sample"] = False
    elif given:
        settings |= {"do_sample": True, **given}
    chat = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    return {"input_data": {"input_string": chat, "parameters": settings}, "params": {}}


def _message(message: dict[str, Any], where: str) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    # "developer" is OpenAI's newer name for "system"; chat templates know only the older one.
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant"):
        raise _refused(f"{where}.role", f"{where}.role must be system, user or assistant for this model's deployment")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise _refused(f"{where}.content", f"{where}.content must be a text for this model's deployment")
    return {"role": role, "content": content}


def _refused(param: str, message: str) -> EndpointRefused:
    return EndpointRefused(f"{message}.", upstream_status=400, param=param, code="unsupported_value")


def to_completion(answer: Any, model: str, stop: str | list[str] | None = None) -> dict[str, Any]:
    """Return the chat.completion for what the endpoint answered, cut before the first of ``stop``. No usage is known.

    Raises EndpointAnswerInvalid.
    """
    text = answer.get("output") if isinstance(answer, dict) else None
    if isinstance(text, list) and len(text) == 1:  # a list of conversations has a list of answers
        text = text[0]
    if not isinstance(text, str):
        raise EndpointAnswerInvalid('The model\'s endpoint answered without an "output" that is a text.')
    for end in [stop] if isinstance(stop, str) else stop or []:
        text = text.partition(end)[0] if end else text
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}
    return {**_frame("chat.completion", model), "choices": [choice]}


async def as_chunks(completion: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield a completion as the chunks of a stream: the whole text, then the end."""
    frame = {**completion, "object": "chat.completion.chunk"}
    message = completion["choices"][0]["message"]
    yield {**frame, "choices": [{"index": 0, "delta": message, "logprobs": None, "finish_reason": None}]}
    yield {**frame, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]}


def _frame(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}
