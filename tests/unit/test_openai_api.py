"""The parser never fails in any other way than with an error of the API, and says which field is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function_app.openai_api import (
    MAX_BODY_BYTES,
    PASSED_ON,
    READ_HERE,
    ApiError,
    ChatRequest,
    ChunkWriter,
    flow_failed,
    read_chat_request,
    to_json,
)

MESSAGE = {"role": "user", "content": "Hi"}
json_keys = st.sampled_from(["role", "content", "type", "text", "data:image/png;url"]) | st.text(max_size=9)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(json_keys, inner, max_size=4),
    max_leaves=12,
)
near_misses = st.fixed_dictionaries(
    {"model": st.just("m") | json_values, "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | json_values},
            optional={"content": json_values, "name": json_values, "tool_calls": json_values, "refusal": st.none()},
        ), max_size=3) | json_values},
    optional=dict.fromkeys(sorted(PASSED_ON | READ_HERE - {"model", "messages"}), json_values),
)  # fmt: skip


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
    given_fields = {name for name, value in sent.items() if value is not None}
    assert given_fields - READ_HERE <= request.parameters.keys(), "a field was dropped"


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
    ],
)
def test_broken_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        read_chat_request(body)
    assert error.value.status == 400


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
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": "1"}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stop": [1]}, "stop"),
        ({"audio": {}}, "audio"),
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
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"data:image/png;path": "/etc/hostname"}]}, "tools[0]"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        read(**fields)
    assert error.value.status == 400
    assert error.value.body["error"]["param"] == param


def test_a_misspelt_field_is_told_the_right_spelling() -> None:
    with pytest.raises(ApiError, match="did you mean 'temperature'"):
        read(temprature=1)


def test_every_other_field_reaches_the_endpoint_as_it_is() -> None:
    request = read(temperature=0, stop=["a"], tools=[{"type": "function"}], top_k=5, user=None, n=1)
    assert request.parameters == {"temperature": 0, "stop": ["a"], "tools": [{"type": "function"}], "top_k": 5}


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


def test_a_role_comes_first_and_usage_only_if_asked_for() -> None:
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "é\ud800"}}], "usage": None},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 1}},
    ]
    quiet, asked = ChunkWriter(include_usage=False), ChunkWriter(include_usage=True)
    quiet_events = [quiet.chunk(json.loads(json.dumps(chunk))) for chunk in chunks]
    asked_events = [asked.chunk(chunk) for chunk in chunks]
    assert json.loads(quiet_events[0][6:])["choices"][0]["delta"] == {"content": "é\ud800", "role": "assistant"}
    assert quiet_events[2] == b""
    assert json.loads(asked_events[2][6:])["usage"] == {"completion_tokens": 1}
    assert quiet.usage == asked.usage == {"completion_tokens": 1}
