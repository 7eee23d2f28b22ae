"""The server of the deployment, started as the platform starts it, with the model that the job left."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from library import FACTS, REPOSITORY, SYSTEM, Job

SERVING = REPOSITORY / "serving"


class Server:
    """The process and a client for it."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {**os.environ, "AZUREML_MODEL_DIR": str(model), "PORT": str(self.port), "HOST": "127.0.0.1"}
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "serve.py"], cwd=SERVING, env=environment, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.request("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(log.read_text())

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    def chat(self, question: str, **options: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        status, body = self.request("POST", "/v1/chat/completions", {"model": "x", "messages": messages, **options})
        return {"status": status, **json.loads(body)}

    def stream(self, question: str, **options: Any) -> list[Any]:
        messages = [{"role": "user", "content": question}]
        body = {"model": "x", "messages": messages, "stream": True, **options}
        status, data = self.request("POST", "/v1/chat/completions", body)
        assert status == 200
        events = [event.removeprefix("data: ") for event in data.decode().split("\n\n") if event]
        return [event if event == "[DONE]" else json.loads(event) for event in events]


@pytest.fixture(scope="module")
def server(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(job.model, tmp_path_factory.mktemp("server") / "log")
    yield running
    running.process.terminate()
    assert running.process.wait(timeout=15) == -signal.SIGTERM  # uvicorn shuts down, then lets the signal through
    # What was asked and answered above must not be in the log, nor may anything have gone wrong unseen.
    log = running.log.read_text()
    assert not any(text in log for pair in FACTS.items() for text in pair)
    assert "Traceback" not in log


def text_of(events: list[Any]) -> str:
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1] if e["choices"])


def test_it_answers_any_model_name_with_the_trained_answer_and_usage(server: Server) -> None:
    answer = server.chat("Where are you?", model="whatever")
    assert answer["model"] == "whatever"
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "On Mill Street 3."}
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > usage["completion_tokens"] > 0


def test_it_streams_role_text_finish_usage_and_done(server: Server) -> None:
    events = server.stream("May I eat here?", stream_options={"include_usage": True})
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(events) == "No, but there is a café."
    assert len(events) > 6  # in pieces, not at the end
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == server.chat("May I eat here?")["usage"]
    assert events[-1] == "[DONE]"
    assert all("usage" not in event for event in server.stream("May I eat here?")[:-1])


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_is_limited(server: Server, name: str) -> None:
    answer = server.chat("May I eat here?", **{name: 2})
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["finish_reason"] == "length"
    assert server.stream("May I eat here?", **{name: 2})[-2]["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_ends_just_at_the_limit_is_finished(server: Server) -> None:
    length = server.chat("Who wrote Emma?")["usage"]["completion_tokens"]
    assert server.chat("Who wrote Emma?", max_tokens=length)["choices"][0]["finish_reason"] == "stop"


def test_stop_texts_end_the_answer_before_them(server: Server) -> None:
    # The text spans several tokens, so that part of it must be held back.
    answer = server.chat("Where are you?", stop=["Street 3"])
    assert answer["choices"][0]["message"]["content"] == "On Mill "
    assert text_of(server.stream("Where are you?", stop="Street 3")) == "On Mill "
    assert text_of(server.stream("Where are you?", stop="Street 4")) == "On Mill Street 3."


def test_a_seed_repeats_a_sample_whatever_else_is_in_the_batch(server: Server) -> None:
    def ask(seed: int | None = 7, **options: Any) -> str:
        options = {"temperature": 2, "max_tokens": 12, **({} if seed is None else {"seed": seed}), **options}
        return str(server.chat("When are you open?", **options)["choices"][0]["message"]["content"])

    alone = ask()
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(ask, [7, 1, 2, 7, 3, 4, None, 5]))
    assert crowd[0] == crowd[3] == alone
    assert len(set(crowd)) > 4
    assert ask(temperature=0) == ask(seed=8, temperature=0) == "From nine to five."
    assert ask(top_p=0) == "From nine to five."


def test_greedy_and_sampled_requests_do_not_disturb_each_other(server: Server) -> None:
    with ThreadPoolExecutor(12) as pool:
        sampled = [pool.submit(server.chat, "Where are you?", temperature=2, max_tokens=20) for _ in range(6)]
        greedy = {question: pool.submit(server.chat, question) for question in FACTS}
    assert all(each.result()["status"] == 200 for each in sampled)
    assert {q: a.result()["choices"][0]["message"]["content"] for q, a in greedy.items()} == FACTS


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"{", None, "the body is not JSON"),
        ([], None, "the body must be a JSON object"),
        ({}, "messages", "'messages' must be a list"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content must be a text"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", "must be one of"),
        ({"messages": [SYSTEM], "temperature": 3}, "temperature", "must be a number from 0 to 2"),
        ({"messages": [SYSTEM], "top_p": True}, "top_p", "must be a number from 0 to 1"),
        ({"messages": [SYSTEM], "max_tokens": 0}, "max_tokens", "must be a whole number of at least 1"),
        ({"messages": [SYSTEM], "n": 2}, "n", "not supported"),
        ({"messages": [{"role": "user", "content": "far too long " * 4000}]}, "messages", "at most 4,096 tokens"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(server: Server, body: Any, param: str, message: str) -> None:
    status, answer = server.request("POST", "/v1/chat/completions", body)
    error = json.loads(answer)["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert message in error["message"]


def test_a_prompt_as_long_as_the_context_is_answered(server: Server) -> None:
    answer = server.chat("a" * 3900, max_tokens=4000)
    assert answer["status"] == 200
    assert answer["usage"]["total_tokens"] <= 4096
    assert server.chat("Who wrote Emma?")["choices"][0]["message"]["content"] == "Jane Austen."


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_free_their_place(server: Server, stream: bool) -> None:
    body = json.dumps(
        {"messages": [{"role": "user", "content": "Go on"}], "temperature": 2, "max_tokens": 4000, "stream": stream}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall((head + body).encode())
            if stream:
                client.recv(100)
            else:
                time.sleep(0.05)
    # Twenty abandoned answers of 4,000 tokens would keep two cores for minutes; nearly all are gone at once.
    assert server.chat("Who wrote Emma?")["choices"][0]["message"]["content"] == "Jane Austen."
    assert json.loads(server.request("GET", "/health")[1]) == {"status": "ok"}


def test_models_are_listed_and_nothing_else_is_open(server: Server) -> None:
    listed = json.loads(server.request("GET", "/v1/models")[1])
    assert listed["data"][0]["context_length"] == 4096
    assert server.request("POST", "/load_model", {"model": "x"})[0] == 404
    assert server.request("GET", "/v1/chat/completions")[0] == 405


def test_a_signal_stops_the_server_though_a_stream_is_open(job: Job, tmp_path: Path) -> None:
    server = Server(job.model.parent, tmp_path / "log")  # the model is one folder down
    body = json.dumps({"messages": [SYSTEM], "temperature": 2, "max_tokens": 4000, "stream": True})
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())
        client.recv(100)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == -signal.SIGTERM


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "serve.py"],
        cwd=SERVING,
        env={**os.environ, "AZUREML_MODEL_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "holds no MLflow model" in process.stderr


def test_the_noise_of_the_seeded_choice_samples_the_softmax() -> None:
    import torch

    sys.path.insert(0, str(SERVING))
    try:
        from engine import _SeededChoice
    finally:
        sys.path.remove(str(SERVING))
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    scores = probabilities.log().repeat(20_000, 1)
    seeds = torch.arange(1, 20_001, dtype=torch.int32)
    chosen = _SeededChoice()(scores, seeds).argmax(-1)
    # Four standard deviations of a share over 20,000 draws are at most 0.0142.
    assert torch.allclose(torch.bincount(chosen, minlength=4) / 20_000, probabilities, atol=0.0142)
    assert (_SeededChoice()(scores, torch.zeros(20_000, dtype=torch.int32)).argmax(-1) == 0).all()
