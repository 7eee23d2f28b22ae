"""What the transformers server cannot do it refuses by name, and the caller of the chat API is told so."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest
from aiohttp import web
from chat_support import World

from function_app.openai_parameters import CHECKS

ROOT = Path(__file__).resolve().parents[2]
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
# Of each field that the chat API passes on and this server cannot obey, a value that asks for something.
BEYOND_IT = {
    "chat_template_kwargs": {"enable_thinking": False}, "frequency_penalty": 1, "ignore_eos": True,
    "logit_bias": {"5": 1}, "logprobs": True, "min_p": 0.1, "min_tokens": 1, "presence_penalty": 1,
    "reasoning_effort": "low", "repetition_penalty": 1.1, "response_format": {"type": "json_object"},
    "tool_choice": "required", "tools": [TOOL], "top_k": 5, "top_logprobs": 2,
}  # fmt: skip


class Engine:
    """As much of the engine as the parser asks."""

    context_length = 100

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        return [0] * sum(len(message["content"]) for message in messages)

    def default(self, name: str) -> float:
        return 1.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "serving"))
    return importlib.import_module("request")


def parse(server: ModuleType, **fields: Any) -> Any:
    return server.parse_request(json.dumps({"messages": HELLO, **fields}).encode(), Engine(), "m")


def test_it_needs_no_torch_to_read_a_request(server: ModuleType) -> None:
    assert parse(server, max_tokens=5).sampling.max_new_tokens == 5
    assert "torch" not in sys.modules


def test_every_field_that_is_passed_on_is_obeyed_or_refused(server: ModuleType) -> None:
    assert CHECKS.keys() - BEYOND_IT.keys() <= server.READ_HERE | server.IGNORED
    for name, value in BEYOND_IT.items():
        with pytest.raises(server.RequestError, match=name) as refused:
            parse(server, **{name: value})
        assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mood": "good"}, "mood"),
        ({"messages": [{**HELLO[0], "name": "Ann"}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x" * 101}]}, "messages"),
    ],
)
def test_nothing_is_dropped_without_a_word(server: ModuleType, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(server.RequestError) as refused:
        parse(server, **fields)
    assert refused.value.param == param


def test_what_asks_for_nothing_is_taken(server: ModuleType) -> None:
    harmless = {name: values[0] for name, values in server.UNSUPPORTED.items()}
    sent_back = {"role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "tool_calls": None}
    assert parse(server, **harmless, messages=[*HELLO, sent_back, *HELLO])


async def test_its_refusal_reaches_the_caller_of_the_chat_api(world: World, server: ModuleType) -> None:
    async def serve(request: web.Request) -> web.Response:
        try:
            server.parse_request(await request.read(), Engine(), "m")
        except server.RequestError as error:
            told = {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.code}
            return web.json_response({"error": told}, status=error.status)
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": "Hi"}}]})

    world.endpoint.handler = serve
    ask = world.client().chat.completions.create
    assert (await ask(model="support", messages=HELLO, seed=1, metadata={"a": "b"})).choices
    for field in ({"logprobs": True}, {"tools": [TOOL]}, {"extra_body": {"top_k": 5}}):
        name = next(iter(field.get("extra_body", field)))
        with pytest.raises(openai.BadRequestError, match=f"'{name}' is not supported") as refused:
            await ask(model="support", messages=HELLO, **field)
        assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")
