"""Azurite and the Functions host as real processes on free ports, for the tests of the local Azure."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
APPS = Path(__file__).parent / "apps"
# Azurite's well-known account, from its documentation.
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
KEYS = {
    "masterKey": "the-master",
    "functionKeys": {"default": "the-host-key"},
    "systemKeys": {"eventgrid_extension": "the-system-key"},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Poll until ``condition`` returns something true, and return that; fails the test naming ``what``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)
    return value


@dataclass
class Azurite:
    """A running Azurite; its access log is ``log_path``."""

    connection_string: str
    log_path: Path


@contextmanager
def running_azurite(folder: Path) -> Iterator[Azurite]:
    """Azurite with nothing in it, kept in memory; its files go to ``folder``."""
    ports = {service: free_port() for service in ("blob", "queue", "table")}
    command = ["node", str(ROOT / "emulator/node_modules/azurite/dist/src/azurite.js"), "--inMemoryPersistence"]
    command += ["--disableTelemetry", "--skipApiVersionCheck"]
    for service, port in ports.items():
        command += [f"--{service}Port", str(port)]
    log_path = folder / "azurite.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: log_path.read_text().count("successfully listening") == 3, "Azurite", 30)
        url = "http://127.0.0.1:{}/devstoreaccount1"
        yield Azurite(
            f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={ACCOUNT_KEY};"
            f"BlobEndpoint={url.format(ports['blob'])};QueueEndpoint={url.format(ports['queue'])};",
            log_path,
        )
    finally:
        process.terminate()
        process.wait(10)


class Host:
    """A running Functions host with one of the sample apps."""

    def __init__(self, app: Path, folder: Path, settings: dict[str, str], flags: list[str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / "host.log"
        self.record_path = folder / "record.jsonl"
        keys = folder / "keys.json"
        keys.write_text(json.dumps(KEYS))
        command = [sys.executable, "-m", "emulator.functions_host", "--app", str(app), "--port", str(self.port)]
        environment = {**os.environ, "RECORD": str(self.record_path), "PYTHON_ENABLE_INIT_INDEXING": "1", **settings}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--keys", str(keys), *flags], cwd=ROOT, env=environment, stderr=log
            )
        wait_until(self._answers, f"the host; its log says:\n{self.log()}")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return bool(self.get("/admin/host/status", key="the-master").json()["state"] == "Running")
        except httpx.ConnectError:
            return False

    def get(self, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        return self.request("GET", path, key, **options)

    def request(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        headers = {"x-functions-key": key} if key else {}
        return httpx.request(method, self.url + path, headers=headers | options.pop("headers", {}), **options)

    def records(self, kind: str, **facts: Any) -> list[dict[str, Any]]:
        """What the app noted of this kind, with these facts."""
        if not self.record_path.exists():
            return []
        lines = [json.loads(line) for line in self.record_path.read_text().splitlines()]
        return [line for line in lines if facts.items() | {("kind", kind)} <= line.items()]

    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(20)


@contextmanager
def running_host(
    app: str, folder: Path, storage: str = "", queue: str = "", *flags: str, **settings: str
) -> Iterator[Host]:
    """The sample app ``app`` with its queue trigger on ``queue``; its ``tick`` timer sleeps unless TICK is given."""
    base = {"STORAGE": storage, "WORK_QUEUE": queue, "TICK": "0 0 0 1 1 *"}
    host = Host(APPS / app, folder, base | settings, list(flags))
    try:
        yield host
    finally:
        host.stop(signal.SIGKILL)


def serve_once(arguments: list[str], folder: Path) -> tuple[int | None, str]:
    """Run the host until it ends by itself; its exit code and standard error.

    Forked from a server that has the host's imports already: far quicker than a start each time, and what the app
    does to the interpreter is gone with it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emulator.functions_host.__main__"])
    child = context.Process(target=_serve, args=(arguments, folder / "stderr"))
    child.start()
    child.join(30)
    child.kill()
    return child.exitcode, (folder / "stderr").read_text()


def _serve(arguments: list[str], stderr: Path) -> None:
    from emulator.functions_host.__main__ import main

    with stderr.open("w") as file:
        sys.stderr = file
        sys.argv = ["emulator.functions_host", *arguments]
        main()
