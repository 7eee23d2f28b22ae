"""The flow under Prompt Flow's own commands: tested, validated, served, run over a file and evaluated."""

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from chat_support import StubEndpoint, serve_endpoint, serve_identity

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60


@dataclass
class PromptFlow:
    """``pf`` with a home and a copy of flow/, without telemetry, traces or a service; and a stub endpoint."""

    folder: Path
    endpoint: StubEndpoint
    environment: dict[str, str]

    async def start(self, *arguments: str, **more: str) -> asyncio.subprocess.Process:
        """Start ``pf`` with these arguments in a process group of its own."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "promptflow._cli.pf", *arguments, cwd=self.folder, env={**self.environment, **more},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def another_flow(self) -> str:
        """Copy the flow, for a command that runs beside another."""
        shutil.copytree(self.folder / "flow", self.folder / "another")
        return "another"

    async def __call__(self, *arguments: str, **more: str) -> tuple[int, str]:
        """Run ``pf``; return its exit code and what it said."""
        process = await self.start(*arguments, **more)
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()


@pytest.fixture
async def pf(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PromptFlow]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "pf.yaml").write_text("telemetry:\n  enabled: false\n")
    # It writes into the flow's folder what it was asked and answered.
    shutil.copytree(ROOT / "flow", tmp_path / "flow", ignore=shutil.ignore_patterns(".promptflow", "__pycache__"))
    async with serve_endpoint(*certificate) as endpoint, serve_identity() as identity:
        environment = {
            **os.environ, "HOME": str(home), "PF_HOME_DIRECTORY": str(home), "PF_TRACING_SKIP_LOCAL_SETUP": "true",
            "PF_TRACING_SKIP_EXPORTER_SETUP": "true", "PF_LOGGING_LEVEL": "CRITICAL", "IDENTITY_HEADER": "header",
            "IDENTITY_ENDPOINT": identity.url, "SSL_CERT_FILE": str(certificate[0]), "PF_WORKER_COUNT": "1",
        }  # fmt: skip
        yield PromptFlow(tmp_path, endpoint, environment)


def documented(word: str) -> list[list[str]]:
    """The arguments of the commands of docs/prompt-flow.md that have ``word`` in them."""
    lines = re.findall(r"^\.venv/bin/pf (.*)$", (ROOT / "docs" / "prompt-flow.md").read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines if word in shlex.split(line)]


async def test_pf_flow_test_answers_and_explains_itself(pf: PromptFlow) -> None:
    (as_documented,) = documented("test")
    (code, said), (failure, explained) = await asyncio.gather(
        pf(*as_documented, CHAT_SCORING_URI=pf.endpoint.uri), pf("flow", "test", "--flow", pf.another_flow())
    )
    assert code == 0, said
    assert "Hello there!" in said
    assert "Unclosed" not in said
    assert pf.endpoint.bodies == [{"messages": [{"role": "user", "content": "Where is the workshop?"}]}]
    assert failure != 0
    assert "set CHAT_SCORING_URI" in explained


async def test_pf_flow_validate_finds_nothing(pf: PromptFlow) -> None:
    (as_documented,) = documented("validate")
    validated = await asyncio.gather(*(pf(*as_documented[:-1], flow) for flow in ("flow", "flow/evaluation")))
    for code, said in validated:
        assert code == 0, said
        assert "error" not in said.lower(), said


async def test_pf_flow_serve_answers_over_http_whole_and_as_a_stream(pf: PromptFlow) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (as_documented,) = documented("serve")
    as_documented[as_documented.index("--port") + 1] = str(port)
    server = await pf.start(*as_documented, CHAT_SCORING_URI=pf.endpoint.uri)
    url = f"http://127.0.0.1:{port}"
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "How are you?"}], "model": "support"}
    try:
        async with aiohttp.ClientSession() as session:
            await _until_healthy(session, url, server)
            async with session.post(f"{url}/score", json=asked) as response:
                assert response.status == 200, await response.text()
                answer = (await response.json())["answer"]
            assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("support", "Hello there!")
            accept = {"Accept": "text/event-stream"}
            async with session.post(f"{url}/score", json={**asked, "stream": True}, headers=accept) as response:
                assert response.content_type == "text/event-stream"
                lines = (await response.text()).splitlines()
            chunks = [json.loads(line.removeprefix("data: "))["answer"] for line in lines if line]
            said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
            assert (said, len(chunks)) == ("Hello there!", 4)
    finally:
        os.killpg(server.pid, 15)
        await server.communicate()


async def _until_healthy(session: aiohttp.ClientSession, url: str, server: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            assert server.returncode is None, (await server.communicate())[0].decode()
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def test_a_batch_run_is_evaluated(pf: PromptFlow) -> None:
    sample = [json.loads(line) for line in (ROOT / "flow/evaluation/sample.jsonl").read_text().splitlines()]
    expected = {line["messages"][-1]["content"]: line["expected"] for line in sample}
    wrong = sample[0]["messages"][-1]["content"]

    async def answer(request: web.Request) -> web.Response:
        question = (await request.json())["messages"][-1]["content"]
        text = "Nothing of that kind!" if question == wrong else expected[question].upper()
        message = {"role": "assistant", "content": text}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
        )

    pf.endpoint.handler = answer
    for as_documented in documented("run"):
        code, said = await pf(*as_documented, CHAT_SCORING_URI=pf.endpoint.uri)
        assert code == 0, said
    assert len(pf.endpoint.bodies) == len(sample)
    assert all(body["temperature"] == 0 for body in pf.endpoint.bodies)
    metrics = json.loads(said[said.index("{") :])
    right = (len(sample) - 1) / len(sample)
    assert (metrics["lines"], metrics["failed"]) == (len(sample), 0)
    assert metrics["exact_match"] == pytest.approx(right)
    assert right <= metrics["token_f1"] < 1
    assert 0 < metrics["latency_p50"] <= metrics["latency_p95"] < 60
