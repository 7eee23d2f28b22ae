"""What goes wrong with a call to Azure, decided by the seed, the operation and how often it was called.

So a seed's faults strike the same calls whatever the timing: the fourth PUT of a traffic, say, and not the hundredth
request. They strike between the SDK and the network, so the SDK's own retries are part of what is tried.
"""

import io
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import urllib3
from azure.core.pipeline.transport import HttpTransport, RequestsTransport
from requests.adapters import HTTPAdapter

from .clock import Clock

LASTING_CHATS = 2  # a deployment that does not answer at three looks is not good, whoever's fault it is
FOR_GOOD = 1000  # attempts: more than any retry policy makes
NOT_OF_AZURE = ("/metadata/endpoints",)  # azure-ai-ml asks for this only of a cloud that it does not know


class Killed(BaseException):
    """The process of the function host ends here."""


@dataclass
class Fault:
    """``kind``: a status, "timeout", "refused" (no connection), "kill" or "race" (another invocation comes between).

    ``after``: the call has had its effect. ``times``: attempts that it strikes.
    """

    kind: int | str
    after: bool
    times: int = 1
    attempts: int = 0


@dataclass(frozen=True)
class Rates:
    """How much goes wrong: the chance of each kind, for one call, and how often it may happen in a schedule."""

    passing: float  # the SDK's own retry helps
    lasting: float  # the app sees it
    kill: float
    race: float
    changing: float = 4.0  # times as much at calls that change something: there a schedule has few chances
    most_lasting: int = 5
    most_kills: int = 3
    most_races: int = 5


class Faults:
    """The faults of one schedule. ``aliases``: what stands for names that differ from run to run of it."""

    def __init__(
        self, seed: int, rates: Rates, clock: Clock, race: Callable[[], None], note: Callable[[str], None]
    ) -> None:
        self.seed, self.rates, self.clock = seed, rates, clock
        self.aliases: dict[str, str] = {}
        self.active = False  # while an invocation runs: the schedule's own calls go well
        self.made: list[tuple[str, dict[str, Any]]] = []  # (path, body) of every PUT that Azure took
        self._race, self.note = race, note
        self._calls: Counter[str] = Counter()
        self._count: Counter[str] = Counter()

    def plan(self, request: Any) -> Fault | None:
        """The fault of an SDK's request, the same for all attempts at it."""
        if not self.active or any(part in request.url for part in NOT_OF_AZURE):
            return None
        if not hasattr(request, "chaos"):
            operation = self.operation(request)
            self._calls[operation] += 1
            request.chaos = self._decide(operation, self._calls[operation])
        fault: Fault | None = request.chaos
        return fault

    def operation(self, request: Any) -> str:
        """``PUT …/deployments/r-run1``: the same in every run of the schedule."""
        parts = urlsplit(request.url)
        path = parts.path.rpartition("/workspaces/local/")[2] if "/workspaces/" in parts.path else parts.path
        for name, alias in self.aliases.items():
            path = path.replace(name, alias)
        path = re.sub(r"[0-9a-f]{12,}|\d{14,}", "#", path)
        asked = parse_qs(parts.query).get("comp", [""])[0]
        return f"{request.method} {path}{f'?{asked}' if asked else ''}"

    def _decide(self, operation: str, call: int) -> Fault | None:
        random = Random(f"{self.seed}/{operation}/{call}")  # noqa: S311
        rates = self.rates
        chat = "/inference/" in operation
        drawn = random.random() / (1 if chat or operation.startswith(("GET", "HEAD")) else rates.changing)
        kinds = (
            ("race", rates.race, rates.most_races), ("kill", rates.kill, rates.most_kills),
            ("lasting", rates.lasting, rates.most_lasting), ("passing", rates.passing, FOR_GOOD),
        )  # fmt: skip
        kind, most = "", 0
        for name, rate, limit in kinds:
            if 0 <= drawn < rate:
                kind, most = name, limit
            drawn -= rate
        if not kind:
            return None
        self._count[kind] += 1
        if self._count[kind] > most:
            return None
        if chat and kind == "lasting":
            self._count["chat"] += 1
            if self._count["chat"] > LASTING_CHATS:
                return None
        after = random.random() < 0.5
        if kind in ("race", "kill"):
            fault = Fault(kind, after)
        else:
            chosen = random.choice([429, 500, 503, "timeout", "refused"])
            fault = Fault(chosen, after and chosen not in (429, "refused"), FOR_GOOD if kind == "lasting" else 1)
        when, lasting = "after" if fault.after else "before", " for good" * (fault.times > 1)
        self.note(f"{fault.kind} {when} {operation} #{call}{lasting}")
        return fault

    def strike(self, fault: Fault | None, send: Callable[[], requests.Response]) -> requests.Response:
        """The answer to one attempt, or what is raised instead."""
        if fault is None or fault.attempts >= fault.times:
            return send()
        fault.attempts += 1
        if fault.after and fault.attempts == 1:
            answer = send()
            answer.content  # noqa: B018 - the connection is free again
        if fault.kind == "kill":
            raise Killed
        if fault.kind == "race":
            self._race()
            return answer if fault.after else send()
        if fault.kind == "timeout":
            raise requests.exceptions.ReadTimeout("chaos")
        if fault.kind == "refused":
            raise requests.exceptions.ConnectTimeout("chaos")
        return _response(int(fault.kind))


def _response(status: int, body: bytes = b"") -> requests.Response:
    """An answer that nobody has sent."""
    made = requests.Response()
    made.status_code, made.reason = status, "Chaos"
    made.headers.update({"Retry-After": "7"} if status == 429 else {})
    made.raw = urllib3.HTTPResponse(io.BytesIO(body), status=status, headers=dict(made.headers), preload_content=False)
    return made


@contextmanager
def between_sdk_and_network(faults: Faults) -> Iterator[None]:
    """Strike every call of the SDKs in this thread; no wait of theirs costs time."""
    thread = threading.current_thread()
    sending: list[Any] = []
    transport_send, adapter_send, real_sleep = RequestsTransport.send, HTTPAdapter.send, HttpTransport.sleep

    def send(self: RequestsTransport, request: Any, **options: Any) -> Any:
        if threading.current_thread() is not thread:
            return transport_send(self, request, **options)
        sending.append(request)
        try:
            return transport_send(self, request, **options)
        finally:
            sending.pop()

    def adapter(self: HTTPAdapter, prepared: requests.PreparedRequest, *given: Any, **options: Any) -> Any:
        if threading.current_thread() is not thread or not sending:
            return adapter_send(self, prepared, *given, **options)
        request = sending[-1]

        def really() -> requests.Response:
            return _seen(faults, prepared, adapter_send(self, prepared, *given, **options))

        answer = faults.strike(faults.plan(request), really)
        answer.request, answer.url = prepared, prepared.url
        return answer

    def sleep(self: HttpTransport, duration: float) -> None:
        if threading.current_thread() is thread:
            faults.clock.sleep(duration)
        else:
            real_sleep(self, duration)

    RequestsTransport.send, HTTPAdapter.send, HttpTransport.sleep = send, adapter, sleep
    try:
        yield
    finally:
        RequestsTransport.send, HTTPAdapter.send, HttpTransport.sleep = transport_send, adapter_send, real_sleep


def _seen(faults: Faults, prepared: requests.PreparedRequest, answer: requests.Response) -> requests.Response:
    """Note what was made, and give blobs the schedule's times."""
    etag, url = answer.headers.get("ETag", ""), str(prepared.url)
    if prepared.method == "PUT" and answer.status_code in (200, 201):
        if etag:
            faults.clock.written(etag)
        faults.made.append((urlsplit(url).path, {"status": answer.status_code}))
    if etag and (known := faults.clock.last_modified(etag)):
        answer.headers["Last-Modified"] = known
    if "comp=list" in url and answer.status_code == 200:
        body = faults.clock.listing(answer.content)
        fresh = _response(200, body)
        fresh.headers = answer.headers
        fresh.headers.pop("Content-Length", None)
        fresh.headers.pop("Transfer-Encoding", None)
        return fresh
    return answer
