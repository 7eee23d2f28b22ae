"""Whatever goes wrong, the stock OpenAI client is told what, in a shape and with a status that it understands."""

import asyncio
import sys
import time
from pathlib import Path

import openai
import pytest
from aiohttp import web
from chat_support import World, event, make_certificate, serve_endpoint

from function_app.settings import settings

ROOT = Path(__file__).resolve().parents[2]
HELLO = [{"role": "user", "content": "a secret prompt"}]


@pytest.mark.parametrize(
    ("upstream", "headers", "seen", "expected"),
    [
        (400, {}, "too long", openai.BadRequestError),
        (422, {}, "too long", openai.BadRequestError),
        (429, {"Retry-After": "7"}, "too long", openai.RateLimitError),
        (424, {"ms-azureml-model-error-statuscode": "429"}, "too long", openai.RateLimitError),
        (401, {}, "turned this app away with 401", openai.InternalServerError),
        (403, {}, "turned this app away with 403", openai.InternalServerError),
        (404, {}, "turned this app away with 404", openai.InternalServerError),
        (500, {}, "too long", openai.InternalServerError),
        (503, {"Retry-After": "3"}, "too long", openai.InternalServerError),
        (307, {"Location": "https://localhost:1/"}, "too long", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_keeps_its_meaning(
    world: World, caplog: pytest.LogCaptureFixture, upstream: int, headers: dict[str, str], seen: str,
    expected: type[openai.APIStatusError], stream: bool,
) -> None:  # fmt: skip
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "too long"}}, status=upstream, headers=headers)

    world.endpoint.handler = refuse
    with pytest.raises(expected) as error:
        await world.client().chat.completions.create(model="support", messages=HELLO, stream=stream)
    public = {422: 400, 424: 429, 401: 502, 403: 502, 404: 502, 500: 502, 307: 502}.get(upstream, upstream)
    assert error.value.status_code == public
    assert seen in error.value.message
    assert error.value.response.headers.get("Retry-After") == headers.get("Retry-After")
    assert error.value.request_id
    warned = [record for record in caplog.records if record.name == "function_app.chat_errors"]
    assert len(warned) == (public != 400), "the operator is warned of what the caller alone can mend"


async def test_the_stock_client_retries_a_429_after_the_time_it_is_told(world: World) -> None:
    async def busy_once(request: web.Request) -> web.StreamResponse:
        world.endpoint.handler = None
        return web.json_response({"error": {"message": "busy"}}, status=429, headers={"Retry-After": "1"})

    world.endpoint.handler = busy_once
    started = time.perf_counter()
    answer = await world.client(max_retries=2).chat.completions.create(model="support", messages=HELLO)
    assert answer.choices[0].message.content == "Hello there!"
    assert time.perf_counter() - started >= 1


async def test_an_endpoint_that_nobody_listens_on_is_a_503(world: World) -> None:
    world.container.put_live("support", "https://localhost:1/v1/chat/completions")
    with pytest.raises(openai.InternalServerError, match="cannot be reached") as error:
        await world.client().chat.completions.create(model="support", messages=HELLO)
    assert error.value.status_code == 503


async def test_an_endpoint_with_an_untrusted_certificate_is_a_503(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_endpoint(*make_certificate(tmp_path)) as other:
        world.container.put_live("support", other.uri)
        with pytest.raises(openai.InternalServerError, match="Certificate") as error:
            await world.client().chat.completions.create(model="support", messages=HELLO)
    assert error.value.status_code == 503
    assert not other.bodies


@pytest.mark.parametrize("stream", [False, True])
async def test_an_endpoint_that_stays_silent_is_a_504(
    world: World, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        raise AssertionError

    await world.client().chat.completions.create(model="support", messages=HELLO)  # loads the flow
    monkeypatch.setattr(sys.modules["endpoint"], "FIRST_TOKEN_SECONDS" if stream else "TOTAL_SECONDS", 0.3)
    world.endpoint.handler = hang
    said = "was silent for 0.3 s" if stream else "took more than 0.3 s"
    with pytest.raises(openai.InternalServerError, match=said) as error:
        await world.client().chat.completions.create(model="support", messages=HELLO, stream=stream)
    assert error.value.status_code == 504


async def _send_and_stop(request: web.Request, last: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(event([{"index": 0, "delta": {"role": "assistant", "content": "Hel"}}]))
    await response.write(last)
    return response


@pytest.mark.parametrize(
    "last",
    [b"", b"data: {nonsense\n\n", b"data: []\n\n", b'data: {"error": {"message": "out of memory"}}\n\n',
     b"data: " + b"x" * (3 << 20) + b"\n\n"],
    ids=["cut", "not-json", "not-object", "error", "too-long"],
)  # fmt: skip
async def test_a_failure_in_the_middle_ends_the_stream_with_an_error(world: World, last: bytes) -> None:
    world.endpoint.handler = lambda request: _send_and_stop(request, last)
    stream = await world.client().chat.completions.create(model="support", messages=HELLO, stream=True)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].delta.content == "Hel"
    with pytest.raises(openai.APIError):
        await anext(chunks)


async def test_an_unknown_model_is_a_404_that_names_the_live_ones(world: World) -> None:
    with pytest.raises(openai.NotFoundError, match="Live models: support"):
        await world.client().chat.completions.create(model="suport", messages=HELLO)


async def test_a_call_that_is_not_there_is_told_what_is(world: World) -> None:
    client = world.client()
    there = r"There is no {} here\. There are POST /api/v1/chat/completions, GET /api/v1/models"
    with pytest.raises(openai.NotFoundError, match=there.format("POST /api/v1/responses")) as error:
        await client.responses.create(model="support", input="Hello")
    assert error.value.code == "unknown_url"
    assert error.value.request_id
    with pytest.raises(openai.NotFoundError, match=there.format("GET /api/v1/chat/completions")):
        await client.get("/chat/completions", cast_to=object)
    with pytest.raises(openai.NotFoundError, match=there.format("POST /api/v1/models/support")):
        await client.post("/models/support", cast_to=object)
    world.key = "wrong"
    with pytest.raises(openai.AuthenticationError):
        await world.client().embeddings.create(model="support", input="Hello")


async def test_without_live_models_the_error_says_what_to_do(world: World) -> None:
    world.container.records.clear()
    with pytest.raises(openai.NotFoundError, match="No model is live yet"):
        await world.client().chat.completions.create(model="support", messages=HELLO)
    assert (await world.client().models.list()).data == []


async def test_a_wrong_key_is_refused_in_openais_shape(world: World) -> None:
    world.key = "wrong"
    with pytest.raises(openai.AuthenticationError) as error:
        await world.client().models.list()
    assert error.value.code == "invalid_api_key"


async def test_without_configured_keys_the_api_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_API_KEYS", "")
    settings.cache_clear()
    with pytest.raises(openai.AuthenticationError, match="api_keys NAME"):
        await world.client().chat.completions.create(model="support", messages=HELLO)


async def test_a_malformed_key_setting_is_named_but_not_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_API_KEYS", "hunter2")
    settings.cache_clear()
    with pytest.raises(openai.InternalServerError, match="CHAT_API_KEYS") as error:
        await world.client().models.list()
    assert "hunter2" not in error.value.message


async def test_a_body_over_the_limit_is_refused(world: World) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        await world.client().chat.completions.create(
            model="support", messages=[{"role": "user", "content": "x" * (5 << 20)}]
        )
    assert error.value.status_code == 413


async def test_a_prompt_cannot_make_prompt_flow_read_a_file_of_the_server(world: World) -> None:
    with pytest.raises(openai.BadRequestError, match="data:"):
        await world.client().chat.completions.create(
            model="support", messages=HELLO,
            extra_body={"chat_template_kwargs": {"a": [{"data:image/png;path": __file__}]}},
        )  # fmt: skip
    assert not world.endpoint.bodies
