"""The parser never fails in any other way than with an error of the API, and says which field is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function_app.openai_api import (
    MAX_BODY_BYTES,
    ApiError,
    ChatRequest,
    ChunkWriter,
    flow_failed,
    model_not_found,
    read_chat_request,
    to_json,
)
from function_app.openai_messages import MAX_CHARACTERS, MAX_MESSAGE_CHARACTERS, MAX_MESSAGES
from function_app.openai_parameters import CHECKS, KNOWN, NO_EFFECT, READ_ELSEWHERE, REFUSED

MESSAGE = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
ASKING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
json_keys = st.sampled_from(["role", "content", "type", "text", "data:image/png;url"]) | st.text(max_size=9)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(json_keys, inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | json_values},
        optional={"content": json_values, "name": json_values, "tool_calls": json_values, "refusal": st.none()},
    ),
    max_size=3,
)
# Few fields at a time: the first that is wrong is all that is looked at.
near_misses = st.builds(
    dict,
    st.dictionaries(st.sampled_from(sorted({*KNOWN, *REFUSED})), json_values, max_size=3),
    model=st.just("m") | json_values,
    messages=st.just([MESSAGE]) | messages | json_values,
)


def read(**fields: Any) -> ChatRequest:
    return read_chat_request(json.dumps({"model": "m", "messages": [MESSAGE], **fields}).encode())


def check_refusal(refused: ApiError) -> None:
    assert refused.status in (400, 413)
    assert refused.body["error"]["message"]
    assert to_json(refused.body)


def check_any(body: bytes) -> None:
    try:
        request = read_chat_request(body)
    except ApiError as refused:
        check_refusal(refused)
        return
    sent = json.loads(body)
    assert request.model == sent["model"]
    assert len(request.messages) == len(sent["messages"])
    assert all(isinstance(message.get("content", ""), str) for message in request.messages)
    assert sent.keys() <= KNOWN | REFUSED.keys()
    given_fields = {name for name, value in sent.items() if value is not None}
    assert given_fields - READ_ELSEWHERE - NO_EFFECT.keys() <= request.parameters.keys(), "a field was dropped"


@given(json_values)
def test_any_json_is_a_request_or_an_error(value: Any) -> None:
    check_any(json.dumps(value).encode())


@settings(max_examples=400)
@given(near_misses)
def test_almost_a_request_is_a_request_or_an_error(value: Any) -> None:
    check_any(json.dumps(value).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error(body: bytes) -> None:
    check_any(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b" ", "The body is empty; it must be a JSON object."),
        (b"[]", 'The body must be a JSON object such as {"model": …, "messages": […]}.'),
        (
            b'{"model": "m", "temprature": 0}',
            "temprature is not a field that this API knows; did you mean 'temperature'?",
        ),
        (b'{"model": "m", "n": 2}', "n must be 1: one request gives one answer."),
        (b'{"model": "m", "store": true}', "store must be false: nothing is kept here."),
        (b'{"model": "m", "modalities": ["audio"]}', 'modalities must be ["text"]: these models answer in text alone.'),
        (
            b'{"model": "m", "messages": [{"role": "user"}]}',
            "messages[0].content must be a string or a list of text parts.",
        ),
    ],
)
def test_a_refusal_is_a_sentence_that_says_what_to_send(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as error:
        read_chat_request(body)
    assert error.value.body["error"]["message"] == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"NaN",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"model": [' + b"{}," * 200_000 + b"{}]}",
    ],
)
def test_broken_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        read_chat_request(body)
    assert (error.value.status, error.value.code) == (400, "invalid_json")


def test_a_body_over_the_limit_is_refused() -> None:
    with pytest.raises(ApiError) as error:
        read_chat_request(b" " * (MAX_BODY_BYTES + 1))
    assert error.value.status == 413


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": "1"}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stop": [1]}, "stop"),
        ({"temperature": -0.1}, "temperature"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"word": 1}}, "logit_bias.word"),
        ({"logit_bias": {"5": True}}, "logit_bias.5"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"user": "x" * 129}, "user"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"ignore_eos": "yes"}, "ignore_eos"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"reasoning_effort": "lots"}, "reasoning_effort"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"list": []}}, "chat_template_kwargs.list"),
        ({"mood": None}, "mood"),
        ({"messages": [{**MESSAGE, "mood": None}]}, "messages[0].mood"),
        ({"messages": [{**MESSAGE, "refusal": ""}]}, "messages[0].refusal"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools[0].function"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "strict": 1}}]}, "tools[0].function.strict"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"safety_identifier": 5}, "safety_identifier"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [MESSAGE, "Hi"]}, "messages[1]"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{**MESSAGE, "mood": "good"}]}, "messages[0].mood"),
        ({"messages": [{**MESSAGE, "name": 1}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{**MESSAGE, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{**MESSAGE, "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [ASKING, {"role": "tool", "content": "x", "tool_call_id": "2"}]}, "messages[1].role"),
        ({"messages": [ASKING, {"role": "tool", "tool_call_id": "1"}]}, "messages[1].content"),
        ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {}}]}]},
         "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"data:image/png;path": "/etc/hostname"}]}, "tools[0]"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        read(**fields)
    assert error.value.status == 400
    assert error.value.body["error"]["param"] == param


def test_a_misspelt_field_is_told_the_right_spelling() -> None:
    with pytest.raises(ApiError, match="did you mean 'temperature'"):
        read(temprature=1)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_these_models_cannot_do_is_refused_with_a_reason(name: str) -> None:
    assert read(**{name: None}).parameters == {}
    with pytest.raises(ApiError, match=REFUSED[name]) as error:
        read(**{name: {}})
    assert (error.value.body["error"]["param"], error.value.code) == (name, "unsupported_parameter")


def test_no_field_of_openais_reference_is_unknown() -> None:
    params = pytest.importorskip("openai.types.chat.completion_create_params")
    reference = params.CompletionCreateParamsBase.__annotations__ | {"stream": bool}
    assert reference.keys() - KNOWN - REFUSED.keys() == set()


PASSED_ON = {
    "chat_template_kwargs": {"enable_thinking": False}, "frequency_penalty": -2, "ignore_eos": True,
    "logit_bias": {"50256": -100}, "logprobs": True, "max_completion_tokens": 5, "max_tokens": 5,
    "metadata": {"team": "support"}, "min_p": 0.1, "min_tokens": 0, "parallel_tool_calls": False,
    "presence_penalty": 2, "reasoning_effort": "low", "repetition_penalty": 1.1,
    "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
    "seed": -1, "stop": ["a", "b"], "temperature": 0,
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "tools": [TOOL], "top_k": -1, "top_logprobs": 20, "top_p": 1, "user": "somebody",
}  # fmt: skip


def test_every_other_field_reaches_the_endpoint_as_it_is() -> None:
    assert PASSED_ON.keys() == CHECKS.keys()
    assert read(**PASSED_ON).parameters == PASSED_ON


def test_a_whole_number_is_sent_on_as_one() -> None:
    assert str(read(max_tokens=5.0).parameters) == "{'max_tokens': 5}"


def test_what_asks_for_nothing_is_taken_and_not_sent() -> None:
    harmless = {
        "modalities": ["text"], "n": 1, "prompt_cache_key": "k", "safety_identifier": "s", "service_tier": "auto",
        "store": False,
    }  # fmt: skip
    assert harmless.keys() == NO_EFFECT.keys()
    assert read(**harmless).parameters == {}


def test_too_many_messages_and_too_long_ones_are_refused_with_the_limit() -> None:
    def refusal(messages: list[dict[str, Any]]) -> str:
        with pytest.raises(ApiError) as error:
            read(messages=messages)
        return str(error.value)

    long = {"role": "user", "content": "x" * MAX_MESSAGE_CHARACTERS}
    assert read(messages=[MESSAGE] * MAX_MESSAGES).messages
    assert read(messages=[long, long]).messages
    assert refusal([MESSAGE] * (MAX_MESSAGES + 1)) == "messages are 2049; at most 2048 are read."
    too_long = {"role": "user", "content": "x" * MAX_MESSAGE_CHARACTERS + "y"}
    assert refusal([MESSAGE, too_long]).startswith("messages[1].content has 1048577 characters; at most 1048576")
    parts = [{"type": "text", "text": "x" * (MAX_MESSAGE_CHARACTERS // 2)}] * 2
    assert refusal([{"role": "user", "content": parts}]).startswith("messages[0].content has 1048577")  # with the "\n"
    assert str(MAX_CHARACTERS) in refusal([long, long, MESSAGE])


def test_a_tools_answer_follows_its_call() -> None:
    answer = {"role": "tool", "content": "sunny", "tool_call_id": "1"}
    messages = read(messages=[MESSAGE, ASKING, answer, {**MESSAGE, "name": "Ann"}]).messages
    assert messages == [MESSAGE, {"role": "assistant", "tool_calls": [CALL]}, answer, {**MESSAGE, "name": "Ann"}]


@pytest.mark.parametrize("more", [{}, {"name": "house"}])
def test_a_developers_message_reaches_the_model_as_a_systems(more: dict[str, str]) -> None:
    sent = {"role": "developer", "content": "Be brief.", **more}
    assert read(messages=[sent, MESSAGE]).messages == [{**sent, "role": "system"}, MESSAGE]


def test_an_answer_of_the_stock_client_can_be_sent_back() -> None:
    openai_chat = pytest.importorskip("openai.types.chat")
    message = openai_chat.ChatCompletionMessage(role="assistant", content="Hi", annotations=[])
    assert read(messages=[MESSAGE, message.model_dump()]).messages[1] == {"role": "assistant", "content": "Hi"}


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read(messages=[{"role": "user", "content": parts}]).messages == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("kind", "upstream", "status"),
    [
        ("refused", 400, 400), ("refused", 413, 413), ("refused", 422, 400), ("refused", 429, 429),
        ("refused", 401, 502), ("refused", 403, 502), ("refused", 404, 502), ("refused", 408, 504),
        ("refused", 500, 502), ("refused", 503, 503), ("refused", None, 502), ("timeout", None, 504),
        ("unreachable", None, 503), ("not_configured", None, 503), ("sign_in_failed", None, 502),
        ("invalid_answer", None, 502),
    ],
)  # fmt: skip
def test_what_went_wrong_decides_the_status(kind: str, upstream: int | None, status: int) -> None:
    assert flow_failed(kind, "why", upstream).status == status


def test_only_what_the_caller_can_wait_out_has_a_retry_after() -> None:
    assert flow_failed("refused", "busy", 429, "9").headers == {"Retry-After": "9"}
    assert flow_failed("refused", "no", 400, "9").headers == {}


def test_an_error_repeats_no_more_of_a_name_than_a_line() -> None:
    assert len(str(model_not_found("x" * 5000, ["support"]))) < 200


def test_a_role_comes_first_and_usage_only_if_asked_for() -> None:
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "é\ud800"}}], "usage": {"completion_tokens": 0}},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 1}},
    ]
    quiet, asked = ChunkWriter(False, "m@1"), ChunkWriter(True, "m@1")
    quiet_events = [quiet.chunk(json.loads(json.dumps(chunk))) for chunk in chunks]
    asked_events = [asked.chunk(chunk) for chunk in chunks]
    assert json.loads(quiet_events[0][6:])["choices"][0]["delta"] == {"content": "é\ud800", "role": "assistant"}
    assert "usage" not in json.loads(quiet_events[0][6:])
    assert json.loads(asked_events[0][6:])["usage"] == {"completion_tokens": 0}
    assert quiet_events[2] == b""
    assert json.loads(asked_events[2][6:])["usage"] == {"completion_tokens": 1}
    assert quiet.usage == asked.usage == {"completion_tokens": 1}
