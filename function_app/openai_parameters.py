"""Every field of a chat request besides its messages: passed on to the model's server, of no effect, or refused.

Of OpenAI's reference none is missing, so that nothing a client sends is dropped without a word. The table for people is
in docs/chat.md, the same bounds for programs in static/openapi.yaml; tests hold the three together.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from .openai_messages import FieldError

MAX_STOPS = 4
MAX_TOOLS = 128
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_METADATA = 16
MAX_LABEL = 128
MAX_TEMPLATE_KWARGS = 16
MAX_COUNT = 2**31 - 1  # more tokens than any model writes; a larger number is an overflow waiting in somebody's server
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# What vLLM hands to the template besides these is up to the template. These are arguments of the function that renders
# it: with them a request would bring a template of its own, or change what comes out from text to something else.
RENDERER_ARGUMENTS = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
    "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip

NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
}
COUNTS: dict[str, tuple[int, int]] = {
    "max_tokens": (1, MAX_COUNT),
    "max_completion_tokens": (1, MAX_COUNT),
    "min_tokens": (0, MAX_COUNT),
    "seed": (-(2**63), 2**63 - 1),
    "top_k": (-1, MAX_COUNT),
    "top_logprobs": (0, MAX_TOP_LOGPROBS),
}
SWITCHES = ("ignore_eos", "logprobs", "parallel_tool_calls")

# Fields of OpenAI's that are no use here, and what to do instead.
REFUSED = {
    "audio": "these models answer in text alone",
    "function_call": "it is the old form of tool_choice; send tool_choice",
    "functions": "it is the old form of tools; send tools",
    "moderation": "what is looked at is set for the model, by chat.max_severity of its recipe",
    "prediction": "predicted outputs are not supported",
    "prompt_cache_options": "caching is up to the model's server and cannot be asked for",
    "prompt_cache_retention": "caching is up to the model's server and cannot be asked for",
    "verbosity": "these models have no such setting; say it in a system message",
    "web_search_options": "these models search nothing",
}


def check_names(fields: dict[str, Any]) -> None:
    """Refuse what is not a field of a chat request, even where it is null. Raises FieldError."""
    if not fields.keys() <= NAMES:
        raise _not_here(next(name for name in fields if name not in NAMES))


def check_parameters(fields: dict[str, Any]) -> dict[str, Any]:
    """Return those of ``fields`` that the endpoint gets. There must be no null and nothing of READ_ELSEWHERE in them.

    Raises FieldError, which names the field.
    """
    passed_on = {}
    for name, value in fields.items():
        if (check := CHECKS.get(name)) is not None:
            check(name, value)
            # 5.0 is a whole number to JSON, but not to every server.
            passed_on[name] = int(value) if name in COUNTS else value
        elif (check := NO_EFFECT.get(name)) is not None:
            check(name, value)
        else:
            raise _not_here(name)
    if passed_on:
        _check_together(passed_on)
    return passed_on


def _not_here(name: str) -> FieldError:
    short = name[:100]
    if reason := REFUSED.get(name):
        return FieldError(short, f"is not supported here: {reason}", "unsupported_parameter")
    import difflib  # for a mistake alone

    near = difflib.get_close_matches(short, KNOWN, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return FieldError(short, f"is not a field that this API knows{hint}", "unknown_parameter")


def _check_together(fields: dict[str, Any]) -> None:
    limits = {fields[name] for name in ("max_tokens", "max_completion_tokens") if name in fields}
    if len(limits) == 2:
        raise FieldError("max_tokens", "says another number than max_completion_tokens, its newer name; send one")
    if fields.get("top_logprobs") and not fields.get("logprobs"):
        raise FieldError("top_logprobs", "is allowed only with logprobs: true")
    if fields.get("tool_choice", "none") not in ("none", "auto") and not fields.get("tools"):
        raise FieldError("tool_choice", "is allowed only with tools")


def _number(name: str, value: Any) -> None:
    low, high = NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise FieldError(name, f"must be a number from {low} to {high}")


def _count(name: str, value: Any) -> None:
    low, high = COUNTS[name]
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not low <= value <= high:
        raise FieldError(name, f"must be a whole number from {low} to {high}")


def _switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise FieldError(name, "must be true or false")


def _label(name: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > MAX_LABEL:
        raise FieldError(name, f"must be a string of at most {MAX_LABEL} characters")


def _only(reason: str, *allowed: Any) -> Callable[[str, Any], None]:
    words = " or ".join(json.dumps(value) for value in allowed)

    def check(name: str, value: Any) -> None:
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
            raise FieldError(name, f"must be {words}: {reason}")

    return check


def _effort(name: str, value: Any) -> None:
    if value not in EFFORTS:
        raise FieldError(name, f"must be one of {', '.join(EFFORTS)}")


def _stop(name: str, value: Any) -> None:
    texts = value if isinstance(value, list) else [value]
    if len(texts) > MAX_STOPS or not all(isinstance(text, str) and text for text in texts):
        raise FieldError(name, f"must be a string or a list of at most {MAX_STOPS} strings, none of them empty")


def _logit_bias(name: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIASES:
        raise FieldError(name, f"must be an object of at most {MAX_LOGIT_BIASES} token ids")
    for token, bias in value.items():
        number = isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100
        if not (token.isascii() and token.isdecimal() and number):
            raise FieldError(f"{name}.{token[:20]}", "must be a token id with a number from -100 to 100")


def _metadata(name: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise FieldError(name, f"must be an object of at most {MAX_METADATA} strings")
    for key, text in value.items():
        if len(key) > 64 or not isinstance(text, str) or len(text) > 512:
            raise FieldError(f"{name}.{key[:64]}", "must be at most 64 characters, with a string of at most 512")


def _chat_template_kwargs(name: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > MAX_TEMPLATE_KWARGS:
        raise FieldError(name, f"must be an object of at most {MAX_TEMPLATE_KWARGS} arguments")
    for key, argument in value.items():
        if key in RENDERER_ARGUMENTS:
            raise FieldError(f"{name}.{key}", "may not be set by a request: it is not one of the template's own")
        if argument is not None and not isinstance(argument, str | int | float):
            raise FieldError(f"{name}.{key}", "must be a string, a number, true or false")


def _response_format(name: str, value: Any) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise FieldError(name, 'must be an object whose type is "text", "json_object" or "json_schema"')
    if kind == "json_schema":
        schema = value.get("json_schema")
        if not isinstance(schema, dict) or not _is_name(schema.get("name")):
            raise FieldError(f"{name}.json_schema", "must be an object with a name and a schema")
        if not isinstance(schema.get("schema"), dict):
            raise FieldError(f"{name}.json_schema.schema", "must be a JSON Schema")
        _check_described(schema, f"{name}.json_schema")


def _tools(name: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise FieldError(name, f"must be a list of at most {MAX_TOOLS} tools")
    for index, tool in enumerate(value):
        path = f"{name}[{index}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise FieldError(path, 'must be an object whose type is "function": there are no other tools here')
        function = tool.get("function")
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            raise FieldError(
                f"{path}.function",
                "must be an object with a name of at most 64 letters, digits, underscores and dashes",
            )
        if not isinstance(function.get("parameters"), dict | None):
            raise FieldError(f"{path}.function.parameters", "must be a JSON Schema")
        _check_described(function, f"{path}.function")


def _tool_choice(name: str, value: Any) -> None:
    if value in ("none", "auto", "required"):
        return
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise FieldError(name, 'must be "none", "auto", "required" or {"type": "function", "function": {"name": "…"}}')


def _check_described(value: dict[str, Any], path: str) -> None:
    if not isinstance(value.get("description"), str | None):
        raise FieldError(f"{path}.description", "must be a string")
    if not isinstance(value.get("strict"), bool | None):
        raise FieldError(f"{path}.strict", "must be true or false")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and TOOL_NAME.fullmatch(value) is not None


# What is passed to the model's server as it is; a server that cannot do it refuses it in its turn.
CHECKS: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(NUMBERS, _number),
    **dict.fromkeys(COUNTS, _count),
    **dict.fromkeys(SWITCHES, _switch),
    "chat_template_kwargs": _chat_template_kwargs,
    "logit_bias": _logit_bias,
    "metadata": _metadata,
    "reasoning_effort": _effort,
    "response_format": _response_format,
    "stop": _stop,
    "tool_choice": _tool_choice,
    "tools": _tools,
    "user": _label,
}
# Labels for OpenAI's own service, and values that ask for nothing: checked, and not sent on.
NO_EFFECT: dict[str, Callable[[str, Any], None]] = {
    "modalities": _only("these models answer in text alone", ["text"]),
    "n": _only("one request gives one answer", 1),
    "prompt_cache_key": _label,
    "safety_identifier": _label,
    "service_tier": _only("there is one tier here", "auto", "default"),
    "store": _only("nothing is kept here", False),
}
READ_ELSEWHERE = {"messages", "model", "stream", "stream_options"}  # by read_chat_request
KNOWN = {*CHECKS, *NO_EFFECT, *READ_ELSEWHERE}
NAMES = KNOWN | REFUSED.keys()
