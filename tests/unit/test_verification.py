"""What a new deployment is asked, and which of its answers let it pass, over plain HTTP on both wires."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from azure.core.pipeline.policies import SansIOHTTPPolicy
from hypothesis import given
from hypothesis import strategies as st

from function_app import verification
from function_app.errors import StepError, TransientError
from function_app.runs import DatasetVersion, Run, new_run
from function_app.verification import Asked, agreement, ask

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Deployment:
    """Answers as it is told, and remembers what it was sent."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/chat"
        self.answer: Answer = lambda body: (200, {"choices": [{"message": {"content": "Yes."}}]})
        self.bodies: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}

    def asked(self, wire: str = "") -> Asked:
        return Asked(self.url, SansIOHTTPPolicy(), {"azureml-model-deployment": "r-1"}, wire)


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            there.bodies.append(body)
            there.headers = dict(self.headers)
            status, value = there.answer(body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    # A 503 and a 500 are asked again by the pipeline; not for seconds, here.
    monkeypatch.setattr("azure.core.pipeline.policies.RetryPolicy.get_backoff_time", lambda *_: 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there = Deployment(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield there
    server.shutdown()
    server.server_close()


def verified(samples: list[dict[str, Any]] | None = None, **release: float) -> Run:
    now = datetime.now(UTC)
    run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 10, now), now)
    run.recipe = {"release": release}
    run.numbers["samples"] = samples or []
    return run


def sample(question: str, tuned: str = "") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "tuned": tuned}


def test_the_evaluations_prompts_are_asked_of_the_new_deployment_alone(deployment: Deployment) -> None:
    run = verified([sample("empty?"), *(sample(f"{n}?", "Yes.") for n in range(8))])
    told = ask(run, deployment.asked())
    assert told.startswith("5 test questions answered by the new deployment, 0.")
    assert told.endswith("agreement with the evaluation's answers 100 %")
    assert deployment.headers["azureml-model-deployment"] == "r-1"
    assert [body["messages"][0]["content"] for body in deployment.bodies] == ["0?", "1?", "2?", "3?", "4?"]
    assert deployment.bodies[0].items() >= {"model": "support", "temperature": 0, "max_tokens": 64}.items()
    found = run.numbers["verification"]
    assert (found["questions"], found["agreement"], found["share"]) == (5, 1.0, 0)
    assert 0 <= found["latency_p50"] <= found["latency_max"] < 5


def test_without_samples_it_must_only_say_something(deployment: Deployment) -> None:
    run = verified()
    assert ask(run, deployment.asked()).startswith("1 test question answered")
    assert run.numbers["verification"]["agreement"] is None


def test_the_scoring_payload_is_spoken_too(deployment: Deployment) -> None:
    deployment.answer = lambda body: (200, {"output": "Yes."})
    run = verified([sample("Yes?", "Yes.")])
    ask(run, deployment.asked("mlflow"))
    assert run.numbers["verification"]["agreement"] == 1.0
    settings = {"max_new_tokens": 64, "do_sample": False}
    messages = [{"role": "user", "content": "Yes?"}]
    assert deployment.bodies == [{"input_data": {"input_string": messages, "parameters": settings}, "params": {}}]


@pytest.mark.parametrize(
    ("status", "answer", "raised", "problem"),
    [
        (200, {"choices": [{"message": {"content": "  "}}]}, StepError, "an empty answer to test question 1"),
        (200, {"choices": [{"message": {"content": None}}]}, StepError, "an empty answer"),
        (200, {"choices": []}, StepError, r"status 200 \(IndexError\); no chat was sent to it"),
        (200, ["text"], StepError, "did not answer test question 1"),
        (400, {"error": "secret prompt"}, StepError, r"status 400 \(HttpResponseError\)"),
        (401, {}, StepError, "status 401"),
        (404, {}, TransientError, "status 404 at test question 1"),  # the endpoint does not know it yet
        (424, {}, TransientError, "status 424"),
        (429, {}, TransientError, "status 429"),
        (503, {}, TransientError, "status 503"),
    ],
)
def test_what_is_no_answer_does_not_pass(
    deployment: Deployment, status: int, answer: Any, raised: type[Exception], problem: str
) -> None:
    deployment.answer = lambda body: (status, answer)
    with pytest.raises(raised, match=problem) as failed:
        ask(verified([sample("secret prompt", "Yes.")]), deployment.asked())
    assert "secret" not in str(failed.value)


def test_with_traffic_on_it_a_deployment_that_keeps_failing_is_given_up_at_once(deployment: Deployment) -> None:
    deployment.answer = lambda body: (503, {})
    run = verified()
    run.share = 10
    for run.attempts in range(verification.FAILURES):
        with pytest.raises(TransientError):
            ask(run, deployment.asked())
    run.attempts = verification.FAILURES
    with pytest.raises(StepError, match="with 10 % of the traffic the new deployment failed 3 times: status 503"):
        ask(run, deployment.asked())


def test_one_that_answers_too_late_does_not_pass(deployment: Deployment) -> None:
    def late(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.3)
        return 200, {"choices": [{"message": {"content": "Yes."}}]}

    deployment.answer = late
    run = verified(max_latency_seconds=0.1)
    with pytest.raises(TransientError, match=r"more than the 0.1 s of release.max_latency_seconds"):
        ask(run, deployment.asked())
    assert len(deployment.bodies) == 1, "who takes too long is not asked again in the same go"
    run.attempts = verification.FAILURES
    with pytest.raises(StepError, match=r"too slow: test question 1 took more than .* 3 times"):
        ask(run, deployment.asked())


def test_one_that_answers_otherwise_than_the_evaluation_does_not_pass_and_leaves_the_evidence(
    deployment: Deployment,
) -> None:
    deployment.answer = lambda body: (200, {"choices": [{"message": {"content": "the the the the"}}]})
    run = verified([sample("?", "Your parcel is on its way.")])
    with pytest.raises(StepError, match=r"agreement 0.00, and release.min_agreement is 0.5"):
        ask(run, deployment.asked())
    assert run.numbers["verification"]["agreement"] == 0
    run.recipe["release"]["min_agreement"] = 0.0
    ask(run, deployment.asked())


def test_nobody_there_is_worth_another_try() -> None:
    with pytest.raises(TransientError, match="ServiceRequestError at test question 1"):
        ask(verified(), Asked("http://127.0.0.1:9/chat", SansIOHTTPPolicy(), {}))


def test_agreement_is_by_the_words() -> None:
    assert agreement("Yes, of course.", "Yes, of course.") == 1
    assert agreement("one two three four", "one two three five") == 0.75
    assert agreement("one two", "three four") == 0
    assert agreement("はい、そうです", "はい、そうでした") > 0.7
    long = " ".join(map(str, range(100)))
    assert agreement(long, " ".join(map(str, range(40)))) == 1  # cut by the limit on its tokens
    assert agreement(long, "0 1 2") < 0.1


@given(st.text(max_size=80), st.text(max_size=80))
def test_agreement_is_a_share(expected: str, said: str) -> None:
    assert 0 <= agreement(expected, said) <= 1
    assert agreement(said, said) == 1
