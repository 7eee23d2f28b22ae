"""The content filter asks Azure AI Content Safety before any model does, and fails closed."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from chat_support import World, chat_world

from function_app.flow_runner import FlowError, flow_runner

flow_runner()  # puts flow/ on the path
content_filter = sys.modules["content_filter"]

CATEGORIES = ("Hate", "SelfHarm", "Sexual", "Violence")


class Service:
    """``POST /contentsafety/text:analyze?api-version=2023-10-01``: a word ``hate4`` in a text gives Hate 4."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.at_once = self.most_at_once = 0
        self.failures: list[tuple[int, str, dict[str, str]]] = []  # status, code and headers of the next answers
        self.analysis: Any = None  # instead of what it would find
        self.answers = asyncio.Event()
        self.answers.set()

    async def analyze(self, request: web.Request) -> web.Response:
        """The route."""
        assert request.query["api-version"] == "2023-10-01"
        assert request.headers["Authorization"].startswith("Bearer ey")
        body = json.loads(await request.text())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.005)
        await self.answers.wait()
        self.at_once -= 1
        if self.failures:
            status, code, headers = self.failures.pop()
            error = {"error": {"code": code, "message": f"about {body['text'][:20]}"}}
            return web.json_response(error, status=status, headers=headers)
        if self.analysis is not None:
            return web.json_response({"blocklistsMatch": [], "categoriesAnalysis": self.analysis})
        assert 0 < len(body["text"]) <= content_filter.LONGEST_TEXT
        self.texts.append(body["text"])
        found = dict.fromkeys(CATEGORIES, 0)
        for name in CATEGORIES:
            for severity in (2, 4, 6):
                if f"{name.lower()}{severity}" in body["text"]:
                    found[name] = severity
        analysis = [{"category": name, "severity": severity} for name, severity in found.items()]
        return web.json_response({"blocklistsMatch": [], "categoriesAnalysis": analysis})


@pytest.fixture
async def world(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with chat_world(certificate) as made:
        record: Any = made.container.records["live/support.json"]
        record["chat"] = {"max_severity": 2}
        yield made


@pytest.fixture
async def service(
    certificate: tuple[Path, Path], world: World, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    stub = Service()
    app = web.Application()
    app.router.add_post("/contentsafety/text:analyze", stub.analyze)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    monkeypatch.setenv("CONTENT_SAFETY_ENDPOINT", f"https://localhost:{runner.addresses[0][1]}")
    yield stub
    stub.answers.set()
    await runner.cleanup()


def said(*texts: str) -> list[dict[str, str]]:
    """A chat of questions, each but the last answered."""
    messages = [{"role": "system", "content": "violence6"}]
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "violence6"}]
    return messages[:-1]


async def ask(world: World, messages: Any, **more: Any) -> Any:
    return await world.client().chat.completions.create(model="support", messages=messages, **more)


async def test_what_is_harmless_enough_goes_to_the_model(world: World, service: Service) -> None:
    for _ in range(2):
        answer = await ask(world, said("hate6, long ago", "hate2 sexual2"))
        assert answer.choices[0].message.content == "Hello there!"
    assert service.texts == ["hate2 sexual2"] * 2
    assert world.identity.asked == 2  # one token for each of the two services
    chunks = [chunk async for chunk in await ask(world, said("fine"), stream=True)]
    assert chunks


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_is_refused_as_openai_would_and_no_model_sees_it(
    world: World, service: Service, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Hate 4, Violence 6\. .* up to severity 2") as refused:
        await ask(world, said("fine", "a dark secret: hate4 violence6 sexual2"), stream=stream)
    assert (refused.value.code, refused.value.param) == ("content_filter", "messages")
    assert "secret" not in str(refused.value)
    assert "secret" not in caplog.text
    assert not world.endpoint.bodies


async def test_all_that_the_user_said_since_the_last_answer_is_looked_at(world: World, service: Service) -> None:
    parts = [{"type": "text", "text": "hate"}, {"type": "text", "text": "sexual4"}]
    with pytest.raises(openai.BadRequestError, match="Sexual 4"):
        await ask(world, [*said("fine"), {"role": "user", "content": parts}, {"role": "user", "content": "well?"}])
    assert service.texts == ["fine\nhate\nsexual4\nwell?"]
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    used = [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_call_id": "1", "content": "hate6"}]
    await ask(world, [*said("fine", "what is it?"), *used])
    assert service.texts[1:] == ["what is it?"]
    await ask(world, [{"role": "system", "content": "hate6"}])  # nobody has said anything yet
    assert len(service.texts) == 2
    between = {"role": "system", "content": "The user sighs."}  # is no answer, behind which something could be hidden
    with pytest.raises(openai.BadRequestError, match="Hate 6"):
        await ask(world, [{"role": "user", "content": "hate6"}, between, {"role": "user", "content": "well?"}])


async def test_a_long_message_is_looked_at_to_its_end(world: World, service: Service) -> None:
    with pytest.raises(openai.BadRequestError, match="Sexual 6"):
        await ask(world, said("word " * 20_000 + "sexual6"))
    assert len(service.texts) == 11
    assert 1 < service.most_at_once <= content_filter.AT_ONCE
    for text in ("x" * 25_000, "x" * content_filter.LONGEST_TEXT, " " * 30_000 + "x", "\n".join(["y" * 7000] * 4), ""):
        cut = list(content_filter.pieces(text))
        assert "".join("".join(cut).split()) == "".join(text.split())
        assert all(part.strip() and len(part) <= content_filter.LONGEST_TEXT for part in cut)


async def test_a_hiccup_of_the_service_is_asked_again(world: World, service: Service) -> None:
    service.failures = [(503, "ServerBusy", {})]
    assert await ask(world, said("fine"))
    assert service.texts == ["fine"]


@pytest.mark.parametrize(
    ("status", "text"),
    [(500, "answered 500"), (429, "too many requests"), (401, "Cognitive Services User"),
     (403, "Cognitive Services User"), (404, "CONTENT_SAFETY_ENDPOINT")],
)  # fmt: skip
async def test_a_service_that_does_not_say_closes_the_way(
    world: World, service: Service, status: int, text: str
) -> None:
    service.failures = [(status, "Code", {"Retry-After": "0"})] * 2
    with pytest.raises(openai.InternalServerError, match=f"could not be checked.*{text}") as failed:
        await ask(world, said("a secret"))
    assert failed.value.status_code == 503
    assert failed.value.response.headers["Retry-After"]
    assert "secret" not in str(failed.value)
    assert not world.endpoint.bodies


async def test_a_message_that_cannot_be_looked_at_is_refused(world: World, service: Service) -> None:
    service.failures = [(400, "InvalidRequestBody", {})]
    with pytest.raises(openai.BadRequestError, match=r"could not look at it \(InvalidRequestBody\)") as refused:
        await ask(world, said("a secret"))
    assert refused.value.code == "content_filter"
    assert "secret" not in str(refused.value)
    assert not world.endpoint.bodies


async def test_a_service_that_hangs_closes_the_way(
    world: World, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answers.clear()
    monkeypatch.setattr(content_filter, "TOTAL_SECONDS", 0.2)
    with pytest.raises(openai.InternalServerError, match=r"did not answer \(TimeoutError\)") as failed:
        await ask(world, said("fine"))
    assert failed.value.status_code == 503
    assert not world.endpoint.bodies


@pytest.mark.parametrize(
    ("endpoint", "text"), [("https://localhost:1", "did not answer"), ("", "set CONTENT_SAFETY_ENDPOINT")]
)
async def test_a_service_that_is_gone_or_was_never_set_closes_the_way(
    world: World, monkeypatch: pytest.MonkeyPatch, endpoint: str, text: str
) -> None:
    monkeypatch.setenv("CONTENT_SAFETY_ENDPOINT", endpoint)
    with pytest.raises(openai.InternalServerError, match=text) as failed:
        await ask(world, said("fine"))
    assert failed.value.status_code == 503
    assert not world.endpoint.bodies


async def test_the_scoring_payload_is_looked_at_too(world: World, service: Service) -> None:
    with pytest.raises(FlowError, match="Hate 6"):
        await flow_runner().run(
            {"messages": said("hate6"), "parameters": {}, "model": "support", "stream": False,
             "rules": {"max_severity": 4}, "endpoint": {"scoring_uri": world.endpoint.uri, "wire": "mlflow"}},
        )  # fmt: skip


async def test_without_the_rule_nobody_looks(world: World, service: Service) -> None:
    record: Any = world.container.records["live/support.json"]
    del record["chat"]
    assert await ask(world, said("hate6"))
    assert service.texts == []


@pytest.mark.parametrize("analysis", [[], "none", [{"category": "Hate"}], [{"category": "Hate", "severity": None}]])
async def test_an_answer_without_severities_closes_the_way(world: World, service: Service, analysis: Any) -> None:
    service.analysis = analysis
    with pytest.raises(openai.InternalServerError, match="without any severity") as error:
        await world.client().chat.completions.create(model="support", messages=[{"role": "user", "content": "Hello"}])
    assert (error.value.status_code, error.value.code) == (503, "content_filter_unavailable")
    assert not world.endpoint.bodies
