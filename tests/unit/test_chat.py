"""The chat API end to end in one process: stock OpenAI client -> HTTP function -> Prompt Flow -> TLS endpoint."""

import asyncio
import logging
import re

import aiohttp
import openai
import pytest
from aiohttp import web
from chat_support import StubContainer, World, event, until

from function_app import azure_clients, live

HELLO = [{"role": "user", "content": "a secret prompt"}]


async def test_the_stock_client_gets_a_whole_answer(world: World) -> None:
    answer = await world.client().chat.completions.create(
        model="support", messages=HELLO, temperature=0.5, max_tokens=5
    )
    assert answer.choices[0].message.content == "Hello there!"
    assert answer.model == "support"
    assert answer.usage.total_tokens == 7
    assert world.endpoint.bodies == [{"model": "support", "messages": HELLO, "temperature": 0.5, "max_tokens": 5}]


async def test_the_endpoint_is_called_with_an_entra_token_and_by_traffic(world: World) -> None:
    for _ in range(3):
        await world.client().chat.completions.create(model="support", messages=HELLO)
    assert world.endpoint.headers[0]["Authorization"].startswith("Bearer ey")
    assert world.key not in str(world.endpoint.headers)
    assert "azureml-model-deployment" not in world.endpoint.headers[0]
    assert world.identity.asked == 1
    assert len(world.endpoint.connections) == 1, "the connection was not reused"


async def test_an_expired_token_is_not_sent(world: World) -> None:
    world.identity.valid_seconds = 1
    await world.client().chat.completions.create(model="support", messages=HELLO)
    await asyncio.sleep(1.1)
    await world.client().chat.completions.create(model="support", messages=HELLO)
    assert world.identity.asked == 2
    assert world.endpoint.headers[0]["Authorization"] != world.endpoint.headers[1]["Authorization"]


async def test_the_stock_client_streams_and_gets_usage_if_it_asks(world: World) -> None:
    stream = await world.client().chat.completions.create(
        model="support", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello there!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 7
    assert {chunk.model for chunk in chunks} == {"support"}


async def test_a_stream_without_usage_asked_for_has_none_but_the_log_has(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "function_app"):
        stream = await world.client().chat.completions.create(model="support", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
        await until(lambda: "stream=true" in caplog.text)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    line = next(record.message for record in caplog.records if record.message.startswith("chat "))
    assert re.search(
        r"key=tests model=support status=200 stream=true ms=\S+ first_ms=\S+ prompt_tokens=3 completion", line
    )


async def test_nothing_that_is_said_or_secret_is_logged(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "cannot read: a secret prompt"}}, status=400)

    with caplog.at_level(logging.DEBUG, "function_app"):
        await world.client().chat.completions.create(model="support", messages=HELLO)
        [_ async for _ in await world.client().chat.completions.create(model="support", messages=HELLO, stream=True)]
        world.endpoint.handler = refuse
        with pytest.raises(openai.BadRequestError):
            await world.client().chat.completions.create(model="support", messages=HELLO)
    logged = "".join(record.getMessage() for record in caplog.records if record.name.startswith("function_app"))
    everything = logged + "".join(capfd.readouterr())
    assert "status=400" in logged
    for secret in ("a secret prompt", "Hello there", world.key, "Bearer"):
        assert secret not in everything


async def test_the_first_word_arrives_before_the_last_is_made(world: World) -> None:
    read = asyncio.Event()

    async def wait_for_the_reader(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event([{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]))
        await read.wait()
        await response.write(event([{"index": 0, "delta": {}, "finish_reason": "stop"}]) + b"data: [DONE]\n\n")
        return response

    world.endpoint.handler = wait_for_the_reader
    stream = aiter(await world.client().chat.completions.create(model="support", messages=HELLO, stream=True))
    assert (await asyncio.wait_for(anext(stream), 30)).choices[0].delta.content == "Hello"
    read.set()
    assert [chunk.choices[0].finish_reason async for chunk in stream] == ["stop"]


async def test_a_client_that_leaves_closes_the_stream_to_the_endpoint(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.endpoint.words, world.endpoint.pause = ["word "] * 200, 0.05
    with caplog.at_level(logging.INFO, "function_app"):
        stream = await world.client().chat.completions.create(model="support", messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await asyncio.wait_for(world.endpoint.broken_off.wait(), 10)
        await until(lambda: "status=499 code=client_closed" in caplog.text)


async def test_models_are_listed_and_described(world: World) -> None:
    models = (await world.client().models.list()).data
    assert [model.id for model in models] == ["support"]
    model = await world.client().models.retrieve("support")
    assert (model.id, model.object, model.created) == ("support", "model", 1795256100)
    assert model.base_model == "embedded"
    with pytest.raises(openai.NotFoundError):
        await world.client().models.retrieve("other")


async def test_a_request_id_is_kept_or_given(world: World) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {world.key}"}) as http:
        async with http.get(f"{world.url}/v1/models", headers={"x-request-id": "my-id.1"}) as answer:
            assert answer.headers["x-request-id"] == "my-id.1"
        async with http.get(f"{world.url}/v1/models", headers={"x-request-id": "x" * 65}) as answer:
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_the_page_allows_only_its_own_script(world: World) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{world.url}/chat") as answer:
        page, policy = await answer.text(), answer.headers["Content-Security-Policy"]
    assert answer.status == 200
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == page.count("<script>") + page.count("<style>") > 1
    assert page.count("<script") == page.count("<script>"), "a script is not in the page itself"
    assert not re.search(r"""(src|href)=["']?(https?:)?//|\son\w+=|\sstyle=""", page)


async def test_sixty_four_at_once_are_all_answered(world: World) -> None:
    world.endpoint.pause = 0.02
    client = world.client()

    async def one(number: int) -> str:
        if number % 2:
            answer = await client.chat.completions.create(model="support", messages=HELLO)
            return answer.choices[0].message.content
        stream = await client.chat.completions.create(model="support", messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*map(one, range(64))) == ["Hello there!"] * 64


def test_live_models_of_a_closed_loop_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure_clients, "live_container", StubContainer)

    async def get() -> live.LiveModels:
        assert live.live_models() is live.live_models()
        return live.live_models()

    assert asyncio.run(get()) is not asyncio.run(get())
    assert sum(loop.is_closed() for loop in live._by_loop) <= 1


def take_scoring_payload(world: World) -> None:
    record = world.container.records["live/support.json"]
    assert isinstance(record, dict)
    world.container.records["live/support.json"] = {**record, "wire": "mlflow"}


async def test_a_model_behind_the_scoring_payload_is_chatted_with_like_any_other(world: World) -> None:
    async def score(request: web.Request) -> web.Response:
        return web.json_response({"output": "Hello there! END and more"})

    world.endpoint.handler = score
    take_scoring_payload(world)
    client = world.client().chat.completions
    whole = await client.create(
        model="support", messages=HELLO, temperature=0, max_tokens=5, stop=["END"], seed=1, presence_penalty=0
    )
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Hello there! ", "stop")
    assert (whole.model, whole.usage) == ("support", None)
    stream = await client.create(model="support", messages=HELLO, top_p=0.5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hello there! END and more", None]
    assert (chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason) == ("assistant", "stop")
    settings = [{"max_new_tokens": 5, "do_sample": False}, {"max_new_tokens": 512, "do_sample": True, "top_p": 0.5}]
    assert world.endpoint.bodies == [
        {"input_data": {"input_string": HELLO, "parameters": each}, "params": {}} for each in settings
    ]
    # Not by the traffic: beside it may be a deployment that takes OpenAI's requests.
    assert {headers["azureml-model-deployment"] for headers in world.endpoint.headers} == {"r-0123456789ab"}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
    ],
)
async def test_what_the_scoring_payload_cannot_say_is_refused_by_name(
    world: World, given: dict[str, object], param: str
) -> None:
    take_scoring_payload(world)
    with pytest.raises(openai.BadRequestError) as refused:
        await world.client().chat.completions.create(**{"model": "support", "messages": HELLO, **given})
    assert refused.value.param == param
    assert world.endpoint.bodies == []


async def test_no_limit_on_top_k_is_told_as_transformers_says_it(world: World) -> None:
    async def score(request: web.Request) -> web.Response:
        return web.json_response({"output": "Hi"})

    take_scoring_payload(world)
    world.endpoint.handler = score
    await world.client().chat.completions.create(model="support", messages=HELLO, extra_body={"top_k": -1})
    assert world.endpoint.bodies[-1]["input_data"]["parameters"]["top_k"] == 0  # it refuses a negative one


@pytest.mark.parametrize("answer", [["x"], {"output": 5}, {"output": ["a", "b"]}, {"result": "x"}, "text"])
async def test_an_answer_that_is_no_scoring_payload_is_a_502(world: World, answer: object) -> None:
    async def score(request: web.Request) -> web.Response:
        return web.json_response(answer)

    world.endpoint.handler = score
    take_scoring_payload(world)
    with pytest.raises(openai.InternalServerError) as failed:
        await world.client().chat.completions.create(model="support", messages=HELLO)
    assert failed.value.status_code == 502


@pytest.mark.parametrize("status", [404, 424, 500, 503])
async def test_a_challenger_that_fails_is_not_seen_by_those_who_chat(world: World, status: int) -> None:
    async def refused_by_traffic(request: web.Request) -> web.Response:
        """By the traffic it leads to a challenger that is out of order; the deployment of the live record is well."""
        if request.headers.get("azureml-model-deployment") == "r-0123456789ab":
            message = {"role": "assistant", "content": "well"}
            return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        return web.json_response({"error": {"message": "starting"}}, status=status)

    world.endpoint.handler = refused_by_traffic
    answer = await world.client().chat.completions.create(model="support", messages=HELLO)
    assert answer.choices[0].message.content == "well"
    assert [headers.get("azureml-model-deployment") for headers in world.endpoint.headers] == [None, "r-0123456789ab"]


async def test_a_model_that_has_moved_is_asked_where_it_is_now(world: World) -> None:
    world.container.put_live("support", "https://localhost:1/v1/chat/completions")
    assert [each.id async for each in world.client().models.list()] == ["support"]  # and remembered
    world.container.put_live("support", world.endpoint.uri)
    answer = await world.client().chat.completions.create(model="support", messages=HELLO)
    assert answer.choices[0].message.content == "Hello there!"
    assert "azureml-model-deployment" not in world.endpoint.headers[0]


async def test_what_fails_there_too_is_told_and_asked_no_third_time(world: World) -> None:
    async def fail(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "out of order"}}, status=503)

    world.endpoint.handler = fail
    with pytest.raises(openai.APIStatusError):
        await world.client().chat.completions.create(model="support", messages=HELLO)
    assert len(world.endpoint.bodies) == 2


@pytest.mark.parametrize("status", [400, 429])
async def test_a_refusal_of_the_request_itself_is_not_asked_elsewhere(world: World, status: int) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no"}}, status=status)

    world.endpoint.handler = refuse
    with pytest.raises(openai.APIStatusError):
        await world.client().chat.completions.create(model="support", messages=HELLO)
    assert len(world.endpoint.bodies) == 1
