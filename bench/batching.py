"""What continuous batching gives: serving/, which the deployments run, against `mlflow models serve`, MLflow's own
server of the same model, with the same prompts and the same answers (greedy, the same limit), 1, 8 and 32 at once.

The model is the embedded one, first fine-tuned on records of the demo, so that there are answers to compare.
"""

import http.client
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from emulator.config import free_port

from .chat_targets import ROOT, started
from .load import percentile
from .measure import Measure

TRAINING = ROOT / ".venv-training" / "bin"
RECORDS, EPOCHS = 32, 40  # of the demo's file: enough that the model knows the answers by heart
MAX_TOKENS = 64
CONCURRENCIES = (1, 8, 32)
ROUNDS, SECONDS = 3, 6.0  # for each server at each concurrency
TRAINING_SECONDS, START_SECONDS, ANSWER_SECONDS = 240, 90, 60
TARGET_AT, TARGET = 8, 4.0
PEER = "mlflow models serve"
Messages = list[dict[str, str]]


@dataclass
class Server:
    """Where a server is asked, with which fields, and how its answer is read; its process, once it runs."""

    port: int
    path: str
    fields: dict[str, Any]
    read: Callable[[Any], str]
    pid: int = 0

    def answer(self, connection: http.client.HTTPConnection, messages: Messages) -> str:
        """Raises RuntimeError for anything but an answer."""
        body = json.dumps({**self.fields, "messages": messages, "max_tokens": MAX_TOKENS})
        connection.request("POST", self.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{self.path} answered {response.status}: {content[:300]!r}")
        return self.read(json.loads(content)).strip()

    def processor_seconds(self) -> float:
        """What it has used so far, with the processes that it started."""
        parent = psutil.Process(self.pid)
        times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)


@dataclass
class Load:
    """What came of one round: answers a second, the seconds that each took, and the processor's for each on average."""

    rate: float
    processor: float
    seconds: list[float]
    different: int


def run() -> list[Measure]:
    """Train the model, start both servers, ask them in turn."""
    folder = Path(tempfile.mkdtemp(prefix="bench-batching-"))
    try:
        prompts = _train(folder)
        found: dict[tuple[str, int], list[Load]] = defaultdict(list)
        with ExitStack() as stack:
            servers = {"ours": _ours(folder, stack), PEER: _mlflow(folder, stack)}
            wanted = _answers(servers[PEER], prompts)
            for server in servers.values():
                _load(server, prompts, wanted, max(CONCURRENCIES), 1.0)  # to warm up
            for _ in range(ROUNDS):
                for at_once in CONCURRENCIES:
                    for name, server in servers.items():
                        found[name, at_once].append(_load(server, prompts, wanted, at_once, SECONDS))
        return _rows(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(**more: str) -> dict[str, str]:
    # Bytecode makes imports several times faster, and every installation has it.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PATH": f"{TRAINING}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", **more}


def _train(folder: Path) -> list[Messages]:
    """Leave the MLflow model in ``folder/model``; return the prompts that it has learnt the answers to."""
    lines = (ROOT / "demo" / "dataset.jsonl").read_text(encoding="utf-8").splitlines()[:RECORDS]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [
        str(TRAINING / "python"), "-m", "training.fine_tune", "--train_file", str(folder / "train.jsonl"),
        "--model_output", str(folder / "model"), "--report_output", str(folder / "report"), "--epochs", str(EPOCHS),
    ]  # fmt: skip
    with started(command, _environment(), folder / "training.log") as process:
        if process.wait(timeout=TRAINING_SECONDS):
            raise RuntimeError(f"the training failed:\n{(folder / 'training.log').read_text(encoding='utf-8')[-2000:]}")
    return [json.loads(line)["messages"][:-1] for line in lines]


def _ours(folder: Path, stack: ExitStack) -> Server:
    port = free_port()
    environment = _environment(AZUREML_MODEL_DIR=str(folder / "model"), PORT=str(port), HOST="127.0.0.1")
    command = [str(TRAINING / "python"), str(ROOT / "serving" / "serve.py")]
    server = Server(port, "/v1/chat/completions", {"model": "m", "temperature": 0}, _text)
    return _started(server, command, environment, folder / "ours.log", stack)


def _mlflow(folder: Path, stack: ExitStack) -> Server:
    port = free_port()
    command = [
        str(TRAINING / "mlflow"), "models", "serve", "--model-uri", str(folder / "model"), "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    # The model samples by default as little as ours at temperature 0; MLflow's answer is a list of one.
    server = Server(port, "/invocations", {}, lambda answer: _text(answer[0]))
    return _started(server, command, _environment(MLFLOW_DISABLE_TELEMETRY="true"), folder / "mlflow.log", stack)


def _text(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def _started(server: Server, command: list[str], environment: dict[str, str], log: Path, stack: ExitStack) -> Server:
    process = stack.enter_context(started(command, environment, log))
    server.pid = process.pid
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.answer(server.connect(), [{"role": "user", "content": "Hello"}])
            return server
        except (OSError, http.client.HTTPException):
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"{server.path} does not answer; the log ends:\n{text}") from None
            time.sleep(0.2)


def _answers(server: Server, prompts: list[Messages]) -> list[str]:
    connection = server.connect()
    return [server.answer(connection, prompt) for prompt in prompts]


def _load(server: Server, prompts: list[Messages], wanted: list[str], at_once: int, seconds: float) -> Load:
    """Ask, ``at_once`` at a time, for ``seconds``; what is under way then is waited for, and counts."""
    began, worked = time.perf_counter(), server.processor_seconds()

    def work(first: int) -> tuple[list[float], int]:
        connection, times, different = server.connect(), [], 0
        number = first * len(prompts) // at_once
        while (asked := time.perf_counter()) - began < seconds:
            text = server.answer(connection, prompts[number % len(prompts)])
            times.append(time.perf_counter() - asked)
            different += text != wanted[number % len(prompts)]
            number += 1
        connection.close()
        return times, different

    with ThreadPoolExecutor(at_once) as pool:
        done = list(pool.map(work, range(at_once)))
    times = [each for times, _ in done for each in times]
    rate = len(times) / (time.perf_counter() - began)
    processor = (server.processor_seconds() - worked) / len(times)
    return Load(rate, processor, times, sum(different for _, different in done))


def _rows(found: dict[tuple[str, int], list[Load]]) -> list[Measure]:
    rows = []
    for at_once in CONCURRENCIES:
        ours, peer = (statistics.median(each.rate for each in found[name, at_once]) for name in ("ours", PEER))
        aim: dict[str, Any] = {"target": f"≥ {TARGET:g}x", "met": ours >= TARGET * peer} if at_once == TARGET_AT else {}
        rows.append(Measure(f"answers a second, {at_once} at once", "/s", ours, PEER, peer, **aim))
    for at_once in CONCURRENCIES:
        for percent in (50, 99):
            ours, peer = (
                percentile([1000 * second for each in found[name, at_once] for second in each.seconds], percent)
                for name in ("ours", PEER)
            )
            rows.append(Measure(f"an answer, {at_once} at once, p{percent}", "ms", ours, PEER, peer))
    for at_once in CONCURRENCIES:
        ours, peer = (
            1000 * statistics.median(each.processor for each in found[name, at_once]) for name in ("ours", PEER)
        )
        rows.append(Measure(f"processor time of an answer, {at_once} at once", "ms", ours, PEER, peer))
    total = sum(len(each.seconds) for (name, _), loads in found.items() if name == "ours" for each in loads)
    different = sum(each.different for (name, _), loads in found.items() if name == "ours" for each in loads)
    return [
        *rows,
        Measure(f"answers that differ from MLflow's, of {total:,}", "", different, target="0", met=not different),
    ]
