"""A chat request of the OpenAI protocol: from JSON to what the engine needs, or an error that says what to change."""

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sampling import Sampling

if TYPE_CHECKING:  # it brings torch
    from engine import Engine

READ_HERE = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream",
    "stream_options",
}  # fmt: skip
# What is accepted and has no effect, because it cannot change an answer of one plain text.
IGNORED = {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# What would change the answer if it were obeyed, with the values that ask for nothing. Any other field is refused, too.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "ignore_eos": (False,),
    "chat_template_kwargs": ({},),
}
ROLES = ("system", "developer", "user", "assistant")
EMPTY = ("", [], {}, None)


class RequestError(Exception):
    """The client's mistake; the message goes back to it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True)
class ChatRequest:
    """What is asked for; ``prompt`` are token ids, ``model`` is the name to answer with."""

    model: str
    prompt: list[int]
    sampling: Sampling
    stop: list[str]
    stream: bool
    include_usage: bool


def parse_request(body: bytes, engine: "Engine", model_name: str) -> ChatRequest:
    """Return the request in ``body``. Any ``model`` is accepted; without one, ``model_name`` is answered.

    Raises RequestError (400) for what is malformed, too long or not supported.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise RequestError("the body is not JSON") from error
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object")
    fields = {name: value for name, value in fields.items() if value is not None and name not in IGNORED}
    for name, harmless in UNSUPPORTED.items():
        if name in fields and fields[name] not in harmless:
            raise RequestError(f"'{name}' is not supported by this model server", name, "unsupported_parameter")
    for name in fields:
        if name not in READ_HERE and name not in UNSUPPORTED:
            raise RequestError(f"'{name[:100]}' is not known to this model server", name[:100], "unknown_parameter")

    prompt = engine.prompt_ids(_messages(fields.get("messages")))
    room = engine.context_length - len(prompt)
    if room < 1:
        text = f"This model reads at most {engine.context_length:,} tokens, and the messages have {len(prompt):,}."
        raise RequestError(text, "messages", "context_length_exceeded")
    limit = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    options = fields.get("stream_options", {})
    return ChatRequest(
        model=str(fields.get("model") or model_name),
        prompt=prompt,
        sampling=Sampling(
            max_new_tokens=min(room, int(_number(fields, limit, room, 1, math.inf, whole=True))),
            temperature=float(_number(fields, "temperature", engine.default("temperature"), 0, 2)),
            top_p=float(_number(fields, "top_p", engine.default("top_p"), 0, 1)),
            seed=int(_number(fields, "seed", 0, -(2**63), 2**63, whole=True)) if "seed" in fields else None,
        ),
        stop=_stop(fields.get("stop", [])),
        stream=bool(fields.get("stream", False)),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise RequestError("'messages' must be a list with at least one message", "messages")
    messages = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
        for key, value in message.items():
            if key not in ("role", "content") and value not in EMPTY:
                raise RequestError(f"{where}.{key[:100]} is not supported by this model server", f"{where}.{key[:100]}")
        content = message.get("content")
        if isinstance(content, list):
            if not all(
                isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content
            ):
                raise RequestError(f"{where}.content may hold text parts only", f"{where}.content")
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise RequestError(f"{where}.content must be a text", f"{where}.content")
        # 'developer' is OpenAI's newer name for 'system'; chat templates know only the older one.
        role = "system" if message["role"] == "developer" else message["role"]
        messages.append({"role": role, "content": content})
    return messages


def _number(
    fields: dict[str, Any], name: str, default: float, least: float, most: float, *, whole: bool = False
) -> float:
    value = fields.get(name, default)
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right_type or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise RequestError(f"'{name}' must be {kind} {bounds}", name)
    return value


def _stop(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise RequestError("'stop' must be a text or a list of texts, none empty", "stop")
    return texts
