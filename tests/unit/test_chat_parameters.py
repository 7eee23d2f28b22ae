"""What the stock Python client sends reaches the model as it is, and what the model adds reaches the client."""

import json
from typing import Any

import openai
import pydantic
import pytest
from aiohttp import web
from chat_support import World, event

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
LOGPROBS = {"content": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}


def answering(world: World, **choice: Any) -> None:
    """Let the endpoint answer with this choice; as a stream, with it as the one delta."""

    async def answer(request: web.Request) -> web.StreamResponse:
        whole = {"index": 0, "finish_reason": "stop", **choice}
        if not world.endpoint.bodies[-1].get("stream"):
            return web.json_response({"id": "1", "object": "chat.completion", "created": 1, "choices": [whole]})
        whole["delta"] = whole.pop("message")
        return web.Response(body=event([whole]) + b"data: [DONE]\n\n", content_type="text/event-stream")

    world.endpoint.handler = answer


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 17},
        {"stop": "END"},
        {"stop": ["END", "STOP"]},
        {"presence_penalty": -0.5, "frequency_penalty": 0.5},
        {"temperature": 0.0, "top_p": 0.9},
        {"max_completion_tokens": 7},
        {"max_tokens": 7},
        {"logprobs": True, "top_logprobs": 2},
        {"logit_bias": {"50256": -100}},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {"response_format": {"type": "json_object"}},
        {"user": "somebody"},
        {"extra_body": {"top_k": 3, "min_p": 0.1}},
    ],
    ids=lambda given: "+".join(given),
)
async def test_a_parameter_reaches_the_model_unchanged(world: World, given: dict[str, Any]) -> None:
    await world.client().chat.completions.create(model="support", messages=HELLO, **given)
    expected = given.get("extra_body", given)
    assert world.endpoint.bodies == [{"model": "support", "messages": HELLO, **expected}]


async def test_log_probabilities_come_back_whole_and_in_a_stream(world: World) -> None:
    answering(world, message={"role": "assistant", "content": "Hi"}, logprobs=LOGPROBS)
    create = world.client().chat.completions.create
    whole = await create(model="support", messages=HELLO, logprobs=True)
    assert whole.choices[0].logprobs.content[0].logprob == -0.1
    chunks = [chunk async for chunk in await create(model="support", messages=HELLO, logprobs=True, stream=True)]
    assert chunks[0].choices[0].logprobs.content[0].token == "Hi"


async def test_a_tool_is_called_and_its_result_is_sent_back(world: World) -> None:
    answering(world, message={"role": "assistant", "content": None, "tool_calls": [CALL]}, finish_reason="tool_calls")
    client = world.client().chat.completions
    asked = await client.create(model="support", messages=HELLO, tools=[TOOL])
    message = asked.choices[0].message
    assert (asked.choices[0].finish_reason, message.tool_calls[0].function.name) == ("tool_calls", "find")
    world.endpoint.handler = None
    result = {"role": "tool", "content": "found", "tool_call_id": "call-1"}
    # The client's own object goes back as it is, with the fields that are null.
    answer = await client.create(model="support", messages=[*HELLO, message, result], tools=[TOOL])
    assert answer.choices[0].message.content == "Hello there!"
    sent = {"role": "assistant", "tool_calls": [CALL]}
    assert world.endpoint.bodies[-1]["messages"] == [*HELLO, sent, result]


async def test_a_streamed_tool_call_is_gathered_by_the_client(world: World) -> None:
    calls = [{"index": 0, **CALL}]
    answering(world, message={"role": "assistant", "tool_calls": calls}, finish_reason="tool_calls")
    async with world.client().chat.completions.stream(model="support", messages=HELLO, tools=[TOOL]) as stream:
        gathered = await stream.get_final_completion()
    assert gathered.choices[0].message.tool_calls[0].function.name == "find"


async def test_an_answer_in_a_form_is_read_by_the_client(world: World) -> None:
    class Place(pydantic.BaseModel):
        street: str

    world.endpoint.words = ['{"street":', ' "Tannery Lane"}']
    answer = await world.client().chat.completions.parse(model="support", messages=HELLO, response_format=Place)
    assert answer.choices[0].message.parsed == Place(street="Tannery Lane")
    asked = world.endpoint.bodies[-1]["response_format"]
    assert (asked["type"], asked["json_schema"]["name"]) == ("json_schema", "Place")


async def test_usage_is_in_a_stream_only_when_it_is_asked_for_there(world: World) -> None:
    create = world.client().chat.completions.create
    for wanted in (True, False):
        options = {"include_usage": wanted}
        stream = await create(model="support", messages=HELLO, stream=True, stream_options=options)
        usages = [chunk.usage for chunk in [chunk async for chunk in stream] if chunk.usage]
        assert [usage.total_tokens for usage in usages] == ([7] if wanted else [])
    with pytest.raises(openai.BadRequestError, match="only with stream: true"):
        await create(model="support", messages=HELLO, stream_options={"include_usage": True})


async def test_the_request_id_is_told_with_each_kind_of_answer(world: World) -> None:
    client = world.client().chat.completions
    raw = await client.with_raw_response.create(model="support", messages=HELLO)
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    mine = {"x-request-id": "order-17"}
    async with client.with_streaming_response.create(
        model="support", messages=HELLO, stream=True, extra_headers=mine
    ) as streamed:
        assert streamed.headers["x-request-id"] == "order-17"
        assert (await streamed.text()).endswith("data: [DONE]\n\n")
    with pytest.raises(openai.NotFoundError) as refused:
        await client.create(model="none", messages=HELLO, extra_headers=mine)
    assert refused.value.request_id == "order-17"
    assert json.loads(refused.value.response.content)["error"]["type"] == "invalid_request_error"
