"""The flow runs as the app runs it, and survives a caller that leaves."""

import asyncio
import os
import re
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from chat_support import StubEndpoint, StubIdentity, serve_endpoint, serve_identity

from function_app.flow_runner import FLOW_FILE, FlowError, FlowRunner, FlowStream, flow_runner

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def identity(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StubIdentity]:
    async with serve_identity() as stub:
        monkeypatch.setenv("IDENTITY_ENDPOINT", stub.url)
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        yield stub


@pytest.fixture
async def endpoint(certificate: tuple[Path, Path], identity: StubIdentity) -> AsyncIterator[StubEndpoint]:
    async with serve_endpoint(*certificate) as stub:
        yield stub


def inputs(endpoint: StubEndpoint, place: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    place = {"scoring_uri": endpoint.uri, **(place or {})}
    return {"messages": HELLO, "parameters": {}, "model": "support", "endpoint": place, **more}


async def test_a_named_deployment_gets_the_request(endpoint: StubEndpoint) -> None:
    answer = await flow_runner().run(inputs(endpoint, {"deployment": "r-1"}))
    assert isinstance(answer, dict)
    assert answer["model"] == "support"
    assert endpoint.headers[0]["azureml-model-deployment"] == "r-1"


async def test_without_a_scoring_uri_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAT_SCORING_URI", raising=False)
    with pytest.raises(FlowError, match="set CHAT_SCORING_URI") as error:
        await flow_runner().run({"messages": HELLO})
    assert error.value.kind == "not_configured"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"endpoint": {"uri": "https://localhost:1/"}},
            "input endpoint has 'uri'; it may have scoring_uri, deployment",
        ),
        ({"endpoint": {"deployment": 5}}, "endpoint.deployment must be str, and is 5"),
        ({"rules": {"max_severity": "2"}}, "rules.max_severity must be int or null, and is '2'"),
    ],
)
async def test_an_input_that_is_not_one_is_told_by_its_name(
    endpoint: StubEndpoint, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(FlowError, match=told) as error:
        await flow_runner().run(inputs(endpoint) | given)
    assert error.value.kind == "not_configured"
    assert endpoint.bodies == []


async def test_a_token_never_goes_over_plain_http() -> None:
    with pytest.raises(FlowError, match="must start with https://"):
        await flow_runner().run({"messages": HELLO, "endpoint": {"scoring_uri": "http://localhost:1/"}})


async def test_without_an_identity_the_error_says_how_to_get_one(
    endpoint: StubEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("IDENTITY_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with pytest.raises(FlowError, match="az login") as error:
        await flow_runner().run(inputs(endpoint))
    assert error.value.kind == "sign_in_failed"
    assert not endpoint.bodies


async def test_a_connection_that_was_closed_meanwhile_is_made_again(endpoint: StubEndpoint) -> None:
    await flow_runner().run(inputs(endpoint))
    calls = 0

    async def drop_once(request: Any) -> Any:
        nonlocal calls
        calls += 1
        endpoint.handler = None
        request.transport.abort()
        await asyncio.sleep(0)

    endpoint.handler = drop_once
    assert isinstance(await flow_runner().run(inputs(endpoint)), dict)
    assert calls == 1


@pytest.mark.parametrize("read", [0, 1, 2])
async def test_closing_a_stream_closes_the_connection_read_or_unread(endpoint: StubEndpoint, read: int) -> None:
    endpoint.words, endpoint.pause = ["word"] * 100, 0.05
    stream = await flow_runner().run(inputs(endpoint, stream=True))
    assert isinstance(stream, FlowStream)
    for _ in range(read):
        await anext(stream)
    await stream.aclose()
    await asyncio.wait_for(endpoint.broken_off.wait(), 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_that_is_cancelled_leaves_nothing_open(endpoint: StubEndpoint, stream: bool) -> None:
    await flow_runner().run(inputs(endpoint))  # the connection is there already

    async def never_answer(request: Any) -> Any:
        try:
            await asyncio.sleep(30)
        finally:
            endpoint.broken_off.set()

    endpoint.handler = never_answer
    run = asyncio.create_task(flow_runner().run(inputs(endpoint, stream=stream)))
    await asyncio.sleep(0.1)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.wait_for(endpoint.broken_off.wait(), 2)
    # Prompt Flow's own scheduler now has a thread that ends the process.
    assert not [thread.name for thread in threading.enumerate() if "after_cancellation" in thread.name]


async def test_runs_that_overlap_leave_the_standard_streams_as_they_were(endpoint: StubEndpoint) -> None:
    before = sys.stdout, sys.stderr
    await asyncio.gather(*(flow_runner().run(inputs(endpoint)) for _ in range(8)))
    assert (sys.stdout, sys.stderr) == before


def test_one_runner_serves_several_event_loops(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("IDENTITY_HEADER", "header")
    runner, clients = FlowRunner(), list[Any]()

    async def ask() -> str:
        async with serve_endpoint(*certificate) as endpoint, serve_identity() as identity:
            monkeypatch.setenv("IDENTITY_ENDPOINT", identity.url)
            answer = await runner.run(inputs(endpoint))
            assert isinstance(answer, dict)
            clients.append(await sys.modules["endpoint"].endpoint_client())
            return str(answer["choices"][0]["message"]["content"])

    assert [asyncio.run(ask()) for _ in range(3)] == ["Hello there!"] * 3
    assert sys.modules["endpoint"]._clients._clients == {}, "a client outlived its loop"
    assert len(set(clients)) == 3
    assert all(client._session.closed for client in clients)


def test_the_flow_needs_no_more_than_it_says() -> None:
    wanted = set(re.findall(r"^([\w-]+)==", (FLOW_FILE.parent / "requirements.txt").read_text(), re.MULTILINE))
    imported = set()
    for file in FLOW_FILE.parent.glob("*.py"):
        imported |= set(re.findall(r"^(?:from|import) ([\w]+)", file.read_text(), re.MULTILINE))
    outside = imported - sys.stdlib_module_names - {file.stem for file in FLOW_FILE.parent.glob("*.py")}
    assert outside == {"aiohttp", "azure", "promptflow"}
    assert wanted == {"aiohttp", "azure-ai-contentsafety", "azure-identity", "promptflow-core"}
