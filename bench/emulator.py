"""The local Azure with 10,000 jobs and models in it: its answers' times, its memory, and how long ``up`` takes.

The peer is moto's SageMaker server, in an environment of its own that this makes, with as many training jobs and
models: the same questions to the other local cloud that people use in tests. It speaks plain HTTP, checks no token,
keeps all in memory and closes the connection after each answer; the local Azure speaks TLS over one connection, checks
the token's signature and reads SQLite. moto's list of models has no pages, so that row has no peer.
"""

import http.client
import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from emulator.config import Home, free_port, load_project
from emulator.store import Store
from emulator.supervisor import parts
from tests.local_azure import exports, run_emulator

from .measure import Measure

ROOT = Path(__file__).resolve().parents[1]
MOTO = "moto[server]==5.2.5"
PEER = "moto, SageMaker"
COUNT = 10_000  # jobs, and as many models
TAGGED = 100  # every so manieth job has the tag that is asked for
WARM_UP, REQUESTS = 20, 200
UP_TARGET, MEMORY_TARGET, GET_TARGET, PAGE_TARGET = 8.0, 150.0, 5.0, 50.0  # seconds, MB, ms, ms
API_VERSION = "api-version=2024-01-01-preview"
# Bytecode makes imports several times faster, and every installation has it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def run() -> list[Measure]:
    """Fill one local Azure, start it several times, ask it, then ask the peer the same."""
    home = Home(load_project(ROOT / "emulator.yaml"), Path(tempfile.mkdtemp(prefix="bench-emulator-")))
    try:
        first, _ = _up(home)
        empty = _memory(home)
        client = Client(home)
        examples = client.make_examples()
        run_emulator(home.path, "down")
        _fill(home, examples)
        starts = []
        for _ in range(3):
            starts.append(_up(home))
            full = _memory(home)
            if len(starts) < 3:
                run_emulator(home.path, "down")
        client = Client(home)
        client.check_copies(examples)
        ours = {name: _times(ask) for name, ask in client.questions().items()}
        afterwards = _memory(home)
    finally:
        run_emulator(home.path, "down")
        shutil.rmtree(home.path, ignore_errors=True)
    peer, peer_memory = _peer()
    return [
        *_start_rows(first, starts),
        _memory_row("Resource Manager idle, empty, RSS", empty.rss, None),
        _memory_row(f"Resource Manager idle, {2 * COUNT:,} resources, RSS", full.rss, None),
        _memory_row("the same after the requests below, RSS", afterwards.rss, peer_memory.rss if peer_memory else None),
        _memory_row("the same after the requests below, USS", afterwards.uss, peer_memory.uss if peer_memory else None),
        *(row for name, seconds in ours.items() for row in _answer_rows(name, seconds, peer.get(name))),
    ]


def _up(home: Home) -> tuple[float, dict[str, float]]:
    """Seconds of ``python -m emulator up``, and after which of them each part answered for the first time."""
    answered: dict[str, float] = {}
    waiting: dict[str, Callable[[], bool]] = {}
    started = time.monotonic()
    command = [sys.executable, "-m", "emulator", "up"]
    environment = {**os.environ, "EMULATOR_HOME": str(home.path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if not waiting and not answered and (state := home.load()) and state.supervisor:
                waiting = {part.name: part.healthy for part in parts(home, state, 1)}
            for name in [name for name, healthy in waiting.items() if healthy()]:
                answered[name] = time.monotonic() - started
                del waiting[name]
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"the local Azure did not start; see {home.logs}")
    return time.monotonic() - started, answered


def _memory(home: Home) -> Any:
    """Of the control process, with which Resource Manager shares an event loop."""
    state = home.load()
    assert state is not None
    return psutil.Process(int(state.processes["control"]["pid"])).memory_full_info()


class Client:
    """Resource Manager over one TLS connection that is kept."""

    def __init__(self, home: Home) -> None:
        environment = exports(run_emulator(home.path, "env"))
        project = home.project
        url = environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]
        context = ssl.create_default_context(cafile=environment["SSL_CERT_FILE"])
        self._connection = http.client.HTTPSConnection(url.removeprefix("https://"), context=context, timeout=60)
        identity = requests.get(
            environment["IDENTITY_ENDPOINT"],
            params={"resource": "https://management.azure.com"},
            headers={"X-IDENTITY-HEADER": environment["IDENTITY_HEADER"]},
            timeout=10,
        )
        self._headers = {"Authorization": f"Bearer {identity.json()['access_token']}"}
        self.workspace = project.workspace_id
        self._new = iter(range(COUNT))

    def call(self, method: str, path: str, properties: Any = None) -> Any:
        body = None if properties is None else json.dumps({"properties": properties})
        mark = "&" if "?" in path else "?"
        self._connection.request(method, f"{self.workspace}/{path}{mark}{API_VERSION}", body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return json.loads(content)

    def make_examples(self) -> list[str]:
        """A job and a model as the API makes them, of which the others are copies; the paths of both."""
        self.call(
            "PUT", "computes/cpu", {"computeType": "AmlCompute", "properties": {"scaleSettings": {"maxNodeCount": 1}}}
        )
        self.call("PUT", "environments/any/versions/1", {"image": "any", "osType": "Linux"})
        job = {
            "jobType": "Command",
            "command": "true",
            "environmentId": f"{self.workspace}/environments/any/versions/1",
            "computeId": f"{self.workspace}/computes/cpu",
            "tags": {"team": "blue"},
        }
        self.call("PUT", "jobs/example", job)
        self.put_model("example")
        deadline = time.monotonic() + 60
        while self.call("GET", "jobs/example")["properties"]["status"] != "Completed":
            if time.monotonic() > deadline:
                raise RuntimeError("the example job does not end")
            time.sleep(0.1)
        return ["jobs/example", "models/example", "models/example/versions/1"]

    def put_model(self, name: str) -> Any:
        model = {"modelUri": "azureml://datastores/workspaceblobstore/paths/m", "modelType": "custom_model"}
        return self.call("PUT", f"models/{name}/versions/1", model)

    def check_copies(self, examples: list[str]) -> None:
        """What was written to the store directly is shown as what came through the API."""
        for path in examples:
            made, copied = (json.dumps(self.call("GET", p)) for p in (path, path.replace("example", _name(path, 1))))
            made, copied = made.replace("example", "x"), copied.replace(_name(path, 1), "x")
            ours, theirs = json.loads(made), json.loads(copied)
            for shown in (ours, theirs):
                del shown["systemData"]  # the times
            if ours != theirs:
                raise RuntimeError(f"the copy of {path} differs: {made} {copied}")

    def questions(self) -> dict[str, Callable[[], object]]:
        """What is measured, by name."""
        return {
            "get a job": lambda: self.call("GET", f"jobs/{_name('jobs', COUNT // 2)}"),
            "get a model's version": lambda: self.call("GET", f"models/{_name('models', COUNT // 2)}/versions/1"),
            "a page of the jobs": lambda: self.call("GET", "jobs?listViewType=ActiveOnly"),
            f"a page of the jobs with a tag (1 in {TAGGED})": lambda: self.call("GET", "jobs?tag=chosen"),
            "a page of the models": lambda: self.call("GET", "models?listViewType=ActiveOnly"),
            "put a model": lambda: self.put_model(f"new-{next(self._new)}"),
        }


def _name(path: str, number: int) -> str:
    return f"{path.split('/')[0].rstrip('s')}-{number:05}"


def _fill(home: Home, examples: list[str]) -> None:
    """Copies of the examples, written to the store as the routes write them."""
    store = Store(home.database)
    workspace = home.project.workspace_id
    for path in examples:
        example = store.get(f"{workspace}/{path}")
        if example is None:  # a container that is made when it is asked for
            continue
        text, internal = json.dumps(example.body), json.dumps(example.internal)
        for number in range(COUNT):
            name = _name(path, number)
            body = json.loads(text.replace("example", name))
            if path.startswith("jobs/") and number % TAGGED == 0:
                body["properties"]["tags"]["chosen"] = "yes"
            store.put(
                f"{workspace}/{path.replace('example', name)}", body, json.loads(internal.replace("example", name))
            )
    store.close()


def _times(ask: Callable[[], object]) -> list[float]:
    """Seconds of each of many, one after another."""
    for _ in range(WARM_UP):
        ask()
    seconds = []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    return seconds


def _peer() -> tuple[dict[str, list[float]], Any]:
    """The same of moto, as far as it has it; nothing when it cannot be installed."""
    with tempfile.TemporaryDirectory(prefix="bench-moto-") as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        installed = subprocess.run([python, "-m", "pip", "install", MOTO], capture_output=True, text=True, check=False)
        if installed.returncode:
            print(f"No peer, because {MOTO} cannot be installed: {installed.stderr[-500:]}", file=sys.stderr)
            return {}, None
        with _moto(python) as (port, process):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

            def call(operation: str, **body: object) -> None:
                headers = {
                    "X-Amz-Target": f"SageMaker.{operation}",
                    "Content-Type": "application/x-amz-json-1.1",
                    "Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/sagemaker/aws4_request,"
                    " SignedHeaders=host, Signature=x",
                }
                connection.request("POST", "/", json.dumps(body), headers)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{operation}: {answer.status} {content[:300]!r}")

            new = iter(range(COUNT))
            questions: dict[str, Callable[[], object]] = {
                "get a job": lambda: call("DescribeTrainingJob", TrainingJobName=_name("jobs", COUNT // 2)),
                "get a model's version": lambda: call("DescribeModel", ModelName=_name("models", COUNT // 2)),
                "a page of the jobs": lambda: call("ListTrainingJobs", MaxResults=50),
                "put a model": lambda: call(
                    "CreateModel",
                    ModelName=f"new-{next(new)}",
                    ExecutionRoleArn="any",
                    PrimaryContainer={"Image": "any"},
                ),
            }
            return {name: _times(ask) for name, ask in questions.items()}, process.memory_full_info()


@contextmanager
def _moto(python: Path) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    command = [str(python), str(ROOT / "bench" / "sagemaker_peer.py"), str(port), str(COUNT)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 120
            while True:
                with suppress(requests.ConnectionError):
                    requests.get(f"http://127.0.0.1:{port}/moto-api/", timeout=10)
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("moto does not start")
                time.sleep(0.1)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def _start_rows(first: float, starts: list[tuple[float, dict[str, float]]]) -> list[Measure]:
    again = statistics.median(seconds for seconds, _ in starts)
    target = f"≤ {UP_TARGET:.0f} s"
    return [
        Measure("up to healthy, the first", "s", first, target=target, met=first <= UP_TARGET),
        Measure(f"up to healthy, {2 * COUNT:,} resources", "s", again, target=target, met=again <= UP_TARGET),
        *(
            Measure(f"  {name} answers after", "s", statistics.median(answered[name] for _, answered in starts))
            for name in starts[0][1]
        ),
    ]


def _memory_row(name: str, ours: int, peer: int | None) -> Measure:
    megabytes = ours / 1e6
    theirs = None if peer is None else peer / 1e6
    met = megabytes <= MEMORY_TARGET
    return Measure(name, "MB", megabytes, PEER if peer else "", theirs, f"≤ {MEMORY_TARGET:.0f} MB", met)


def _answer_rows(name: str, ours: list[float], peer: list[float] | None) -> list[Measure]:
    limit = PAGE_TARGET if "page" in name else GET_TARGET if name.startswith("get") else None
    rows = []
    for kind, index in (("median", 49), ("p95", 94)):
        own, other = (1000 * statistics.quantiles(times, n=100)[index] if times else None for times in (ours, peer))
        assert own is not None
        aim = limit if kind == "median" else None
        rows.append(
            Measure(
                f"{name}, {kind}", "ms", own, PEER if other is not None else "", other,
                f"≤ {aim:.0f} ms" if aim else "", own <= aim if aim else None,
            )
        )  # fmt: skip
    return rows
