"""Who bench/chat.py measures, each in a process of its own: the stub upstream, the app in the local Functions host,
LiteLLM's proxy and `pf flow serve`, all asking the same stub, all with the same chat."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from emulator.certificates import ensure_certificates
from emulator.config import free_port
from function_app.api_keys import new_key

from .chat_load import Target

ROOT = Path(__file__).resolve().parents[1]
LITELLM = ROOT / ".venv-litellm"
LITELLM_REQUIREMENTS = Path(__file__).with_name("litellm-requirements.txt")
MESSAGES = [{"role": "user", "content": "Where is the workshop?"}]
CHAT = {"model": "support", "messages": MESSAGES}
START_SECONDS = 90
LITELLM_KEY = "sk-bench"
LOOPBACK = {"NO_PROXY": "localhost,127.0.0.1", "no_proxy": "localhost,127.0.0.1"}


@dataclass(frozen=True)
class World:
    """A running stub, and the environment in which the app finds it. ``key`` is the app's API key."""

    folder: Path
    upstream: str
    bundle: Path
    key: str
    environment: dict[str, str]

    @property
    def direct(self) -> Target:
        port = int(self.upstream.split(":")[2].split("/")[0])
        headers = {"Authorization": f"Bearer {'x' * 900}"}
        return Target("direct", port, "/v1/chat/completions", headers, CHAT, certificates=str(self.bundle))


@dataclass(frozen=True)
class Running:
    """A target that answers, the process that does it, and the seconds from its start to its first answer."""

    target: Target
    process: psutil.Process
    started: float


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Run the stub."""
    ensure_certificates(folder / "certificates")
    bundle = folder / "certificates" / "bundle.pem"
    command = [sys.executable, "-m", "bench.chat_stub", str(folder / "certificates")]
    with started(command, _environment(), folder / "stub.log", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline() or "{}")
        if not ports:
            raise RuntimeError(f"the stub upstream did not start; see {folder / 'stub.log'}")
        key, entry = new_key("bench")
        environment = _app_environment(ports, bundle, entry)
        yield World(folder, f"https://localhost:{ports['tls']}/v1/chat/completions", bundle, key, environment)


def _environment() -> dict[str, str]:
    # Without PYTHONDONTWRITEBYTECODE: every installation has bytecode.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **LOOPBACK}


def _app_environment(ports: dict[str, int], bundle: Path, entry: str) -> dict[str, str]:
    storage = f"https://localhost:{ports['tls']}/account"
    return {
        **_environment(),
        "IDENTITY_ENDPOINT": f"http://127.0.0.1:{ports['plain']}/msi/token",
        "IDENTITY_HEADER": "header",
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        "SSL_CERT_FILE": str(bundle),
        "REQUESTS_CA_BUNDLE": str(bundle),
        **{
            f"{name}__{service}ServiceUri": storage
            for name in ("Storage", "AzureWebJobsStorage")
            for service in ("blob", "queue")
        },
        "AZURE_SUBSCRIPTION_ID": "s",
        "AZURE_RESOURCE_GROUP": "g",
        "AZURE_ML_WORKSPACE": "w",
        "RUNS_QUEUE": "runs",
        "SWEEP_SCHEDULE": "0 0 4 * * *",
        "CHAT_API_KEYS": entry,
        "FUNCTIONS_WORKER_RUNTIME": "python",
        "PYTHON_ENABLE_INIT_INDEXING": "1",
        "MALLOC_ARENA_MAX": "2",  # as the app is set in Azure
    }


@contextmanager
def functions_host(world: World) -> Iterator[Running]:
    """The app as a laptop runs it."""
    port, keys = free_port(), world.folder / "keys.json"
    keys.write_text('{"masterKey": "m", "functionKeys": {"default": "f"}, "systemKeys": {}}', encoding="utf-8")
    command = [
        sys.executable, "-m", "emulator.functions_host", "--app", str(ROOT), "--port", str(port), "--keys", str(keys),
        "--queue-idle-seconds", "5",
    ]  # fmt: skip
    headers = {"Authorization": f"Bearer {world.key}"}
    target = Target("ours", port, "/api/v1/chat/completions", headers, CHAT)
    with _answering(command, world.environment, world.folder / "host.log", target) as running:
        yield running


@contextmanager
def bare_proxy(world: World) -> Iterator[Running]:
    """What only passes bytes: the floor of any hop."""
    port = free_port()
    command = [sys.executable, "-m", "bench.chat_bare_proxy", str(port), world.upstream]
    target = Target("bare proxy", port, "/", {}, CHAT)
    with _answering(command, world.environment, world.folder / "bare.log", target) as running:
        yield running


@contextmanager
def litellm(world: World) -> Iterator[Running]:
    """LiteLLM's proxy as its documentation's page on production has it: a key, no debug logs; one worker, as ours."""
    config, port = world.folder / "litellm.yaml", free_port()
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    {
                        "model_name": "support",
                        "litellm_params": {
                            "model": "openai/support",
                            "api_base": world.upstream.removesuffix("/chat/completions"),
                            "api_key": "x" * 900,
                        },
                    }
                ],
                "litellm_settings": {"request_timeout": 220, "set_verbose": False, "json_logs": True, "num_retries": 0},
                "general_settings": {"master_key": LITELLM_KEY, "disable_spend_logs": True},
            }
        ),
        encoding="utf-8",
    )
    environment = {
        **_environment(),
        "SSL_CERT_FILE": str(world.bundle),
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it looks for a newer list of prices, and waits for it
    }
    command = [
        str(litellm_environment() / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1",
        "--port", str(port), "--num_workers", "1", "--telemetry", "False",
    ]  # fmt: skip
    headers = {"Authorization": f"Bearer {LITELLM_KEY}"}
    target = Target("LiteLLM", port, "/v1/chat/completions", headers, CHAT)
    with _answering(command, environment, world.folder / "litellm.log", target) as running:
        yield running


def litellm_environment() -> Path:
    """LiteLLM's environment, made when it is missing or of other requirements."""
    wanted, made_of = LITELLM_REQUIREMENTS.read_text(encoding="utf-8"), LITELLM / "requirements"
    if not made_of.exists() or made_of.read_text(encoding="utf-8") != wanted:
        print("installing LiteLLM into .venv-litellm (a minute) …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(LITELLM)], check=True, timeout=120)
        pip = [str(LITELLM / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        done = subprocess.run(
            [*pip, "--requirement", str(LITELLM_REQUIREMENTS)], capture_output=True, text=True, timeout=400, check=False
        )
        if done.returncode:
            raise RuntimeError(f"LiteLLM cannot be installed:\n{done.stderr[-2000:]}")
        made_of.write_text(wanted, encoding="utf-8")
    return LITELLM


@contextmanager
def flow_serve(world: World) -> Iterator[Running]:
    """Prompt Flow's own server of the same flow: neither keys nor models, only the flow."""
    port, flow = free_port(), world.folder / "flow"
    shutil.copytree(ROOT / "flow", flow, ignore=shutil.ignore_patterns("__pycache__", ".promptflow"))
    environment = {
        **world.environment,
        "HOME": str(world.folder),  # where it keeps its database
        "PF_TRACING_SKIP_LOCAL_SETUP": "true",
        "PF_TRACING_SKIP_EXPORTER_SETUP": "true",
        "PROMPTFLOW_WORKER_NUM": "1",
        "CHAT_SCORING_URI": world.upstream,
    }
    pf = str(Path(sys.executable).with_name("pf"))
    quiet = [pf, "config", "set", "telemetry.enabled=false"]
    subprocess.run(quiet, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
    command = [
        pf, "flow", "serve", "--source", str(flow), "--engine", "fastapi", "--host", "127.0.0.1", "--port", str(port),
        "--skip-open-browser",
    ]  # fmt: skip
    target = Target("pf flow serve", port, "/score", {}, CHAT, parameters="parameters", end='"finish_reason": "stop"')
    with _answering(command, environment, world.folder / "pf.log", target) as running:
        yield running


@contextmanager
def _answering(command: list[str], environment: dict[str, str], log: Path, target: Target) -> Iterator[Running]:
    began = time.perf_counter()
    with started(command, environment, log) as process:
        while not _answers(target):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                text = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"{target.name} does not answer (exit code {process.poll()}); its log ends:\n{text}")
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        yield Running(target, _server(process.pid, target.port), seconds)


def _answers(target: Target) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{target.port}{target.path}",
        data=json.dumps(target.body).encode(),
        headers={**target.headers, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
            return target.expected.encode() in response.read()
    except OSError:
        return False


def _server(pid: int, port: int) -> psutil.Process:
    """The process that listens on ``port``: a command may start another."""
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        if any(c.laddr and c.laddr.port == port and c.status == "LISTEN" for c in each.net_connections("tcp")):
            return each
    return process


@contextmanager
def started(
    command: list[str], environment: dict[str, str], log: Path, **pipes: Any
) -> Iterator["subprocess.Popen[str]"]:
    """A process that is ended, with all that it started, on the way out."""
    with open(log, "w", encoding="utf-8") as file:
        options = {"stdout": file, "stderr": file, **pipes}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **options)
        try:
            yield process
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        parent = psutil.Process(process.pid)
        family = [*parent.children(recursive=True), parent]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.terminate()
        for each in psutil.wait_procs(family, timeout=8)[1]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait(timeout=10)
    if process.stdout:
        process.stdout.close()
