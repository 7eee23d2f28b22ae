"""The safety check through the real SDK, against a stub with the service's documented wire form, over TLS."""

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ServiceRequestError

from function_app import content_safety
from function_app.content_safety import LONGEST_TEXT, check, pieces
from function_app.errors import StepError
from function_app.runs import DatasetVersion, Run, new_run
from function_app.steps import _transient

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
CATEGORIES = ("Hate", "SelfHarm", "Sexual", "Violence")


class Service:
    """``POST /contentsafety/text:analyze?api-version=2023-10-01``: a word ``hate4`` in a text gives Hate 4."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.at_once = self.most_at_once = 0
        self.failures: list[tuple[int, str, dict[str, str]]] = []  # status, code and headers of the next answers
        self.lock = threading.Lock()

    def answer(self, headers: Any, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
        assert path == "/contentsafety/text:analyze?api-version=2023-10-01"
        assert headers["Authorization"] == "Bearer token"
        if self.failures:
            status, code, more = self.failures.pop()
            return status, {"error": {"code": code, "message": f"about {body['text'][:20]}"}}, more
        assert 0 < len(body["text"]) <= LONGEST_TEXT
        self.texts.append(body["text"])
        found = dict.fromkeys(CATEGORIES, 0)
        for name in CATEGORIES:
            for severity in (2, 4, 6):
                if f"{name.lower()}{severity}" in body["text"]:
                    found[name] = severity
        analysis = [{"category": name, "severity": severity} for name, severity in found.items()]
        return 200, {"blocklistsMatch": [], "categoriesAnalysis": analysis}, {}


class Credential:
    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        assert scopes == ("https://cognitiveservices.azure.com/.default",)
        return AccessToken("token", int(time.time()) + 3600)


@pytest.fixture
def service(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    stub = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                stub.at_once += 1
                stub.most_at_once = max(stub.most_at_once, stub.at_once)
            time.sleep(0.005)
            with stub.lock:
                status, answer, headers = stub.answer(self.headers, self.path, body)
                stub.at_once -= 1
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    use(monkeypatch, f"https://localhost:{server.server_port}")
    yield stub
    server.shutdown()
    server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(content_safety, "settings", lambda: SimpleNamespace(content_safety_endpoint=endpoint))
    monkeypatch.setattr(content_safety.azure_clients, "credential", Credential)
    monkeypatch.setattr(content_safety, "PAUSE", 0.02)


def run_with(*answers: str | None) -> Run:
    run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 1, START), START)
    run.numbers["samples"] = [{"messages": [], "tuned": answer} for answer in answers]
    return run


def test_every_answer_is_looked_at_and_the_worst_of_each_category_kept(service: Service) -> None:
    answers = ["fine", "hate2 violence4", "hate6", "", "  \n", None, *(f"answer {number}" for number in range(20))]
    assert check(run_with(*answers)) == {
        "answers": 23,
        "severities": {"Hate": 6, "SelfHarm": 0, "Sexual": 0, "Violence": 4},
    }
    assert Counter(service.texts) == Counter(answer for answer in answers if answer and answer.strip())
    assert 1 < service.most_at_once <= content_safety.AT_ONCE


def test_a_long_answer_is_looked_at_to_its_end(service: Service) -> None:
    long = "word " * 5000 + "sexual4"
    assert check(run_with(long))["severities"]["Sexual"] == 4
    assert len(service.texts) == 3
    assert sum("word" in part for part in service.texts) == 3
    for text in (long, "x" * 25_000, "x" * LONGEST_TEXT, " " * 30_000 + "x", "\n".join(["y" * 7000] * 4)):
        parts = list(pieces(text))
        assert "".join("".join(parts).split()) == "".join(text.split())
        assert all(part.strip() and len(part) <= LONGEST_TEXT for part in parts)


def test_an_engine_without_sampled_answers_asks_nothing_and_says_so(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with()
    run.numbers["samples"] = [{"messages": [], "expected": "only a question"}]
    assert check(run) == {"answers": 0, "severities": {}}
    assert service.texts == []
    assert "answers=0" in caplog.text


def test_too_many_requests_are_waited_for_within_bounds(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.failures = [(429, "TooManyRequests", {})] * 3 + [(429, "TooManyRequests", {"Retry-After": "0"})] * 2
    assert check(run_with("a", "hate2", "c"))["severities"]["Hate"] == 2
    assert sorted(service.texts) == ["a", "c", "hate2"]
    service.failures = [(429, "TooManyRequests", {"Retry-After": "3600"})]
    started = time.monotonic()
    with pytest.raises(HttpResponseError) as refused:
        check(run_with("a"))
    assert time.monotonic() - started < 5
    assert _transient(refused.value)  # so the run repeats the step, and waits as long as the service says


@pytest.mark.parametrize("status", [500, 503, 401])
def test_what_may_pass_is_left_to_the_run_which_repeats_the_step(service: Service, status: int) -> None:
    service.failures = [(status, "ServerBusy", {})]
    with pytest.raises(HttpResponseError) as refused:
        check(run_with("a", *["b"] * 50))
    assert _transient(refused.value)
    assert len(service.texts) < 50  # the others are not asked any more


def test_what_the_service_refuses_for_good_is_told_without_the_text(service: Service) -> None:
    service.failures = [(400, "InvalidRequestBody", {})]
    with pytest.raises(StepError, match=r"refused a sampled answer \(400, InvalidRequestBody\)") as refused:
        check(run_with("a secret answer"))
    assert "secret" not in str(refused.value)
    service.failures = [(404, "ResourceNotFound", {})]
    with pytest.raises(StepError, match="CONTENT_SAFETY_ENDPOINT"):
        check(run_with("a secret answer"))


def test_a_service_that_is_not_there_is_something_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "https://localhost:1")
    with pytest.raises(ServiceRequestError) as missing:
        check(run_with("a"))
    assert _transient(missing.value)
