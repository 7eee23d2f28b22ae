"""Starts the parts in order, waits until they are healthy, starts again what dies, and stops everything.

Run as: python -m emulator.supervisor (``up`` does)
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import processes
from .config import HOST, KEEP_ALIVE, ConfigError, Home, State, load_project
from .environment import app_environment, no_proxy, sdk_environment, urls

log = logging.getLogger("emulator.supervisor")
HEALTH_INTERVAL = 0.1  # seconds
RESTART_DELAY = 1.0  # seconds before a part that died is started again
MAX_RESTARTS, RESTART_WINDOW = 3, 60.0  # so many in so many seconds, then it cannot work
CONTROL_GRACE = 15.0  # seconds; the control process gives its own jobs and deployments processes.GRACE


@dataclass(frozen=True)
class Part:
    """One program of the local Azure: how to start it and how to know that it answers."""

    name: str
    command: list[str]
    environment: dict[str, str]
    healthy: Callable[[], bool]
    folder: Path


def parts(home: Home, state: State, event_copies: int) -> list[Part]:
    """The programs, Azurite first, in the order of their start. Raises ConfigError when one is not installed."""
    root, ports, where = home.project.root, state.ports, urls(state)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
    # The parts run in the project's folder, which need not be this package's.
    path = [str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited |= {**no_proxy(), "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(path)}
    certificates = home.path / "certificates"
    azurite = Path(__file__).parent / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"
    mlflow = root / home.project.mlflow_python / "bin" / "python"
    for needed in (azurite, mlflow):
        if not needed.exists():
            raise ConfigError(f"{needed} is not installed; run `make install`.")
    result = [
        Part(
            "azurite",
            [
                "node", str(azurite), "--location", str(home.folder("azurite")), "--disableTelemetry",
                "--oauth", "basic",
                "--cert", str(certificates / "server.pem"), "--key", str(certificates / "server.key"),
                "--blobHost", HOST, "--queueHost", HOST, "--tableHost", HOST, "--blobPort", str(ports["blob"]),
                "--queuePort", str(ports["queue"]), "--tablePort", str(ports["table"]), "--skipApiVersionCheck",
                "--blobKeepAliveTimeout", str(KEEP_ALIVE), "--queueKeepAliveTimeout", str(KEEP_ALIVE),
            ],
            inherited,
            lambda: _listens(ports["blob"]) and _listens(ports["queue"]),
            home.path,
        ),
        Part(
            "mlflow",
            [
                str(mlflow), "-m", "mlflow", "server", "--host", HOST, "--port", str(ports["mlflow"]),
                "--workers", "1", "--backend-store-uri", f"sqlite:///{home.folder('mlflow')}/mlflow.db",
                "--artifacts-destination", str(home.folder("mlflow", "artifacts")),
            ],
            {
                **inherited,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
                # Its own job queue is for features that nobody uses here, and is a process more.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            lambda: _answers(f"{where['mlflow']}/health"),
            home.path,
        ),
        Part(
            "control",
            [
                sys.executable, "-m", "emulator.control", "--project", str(root / home.project.file),
                "--home", str(home.path),                "--event-copies", str(event_copies),
            ],
            # It calls Azurite over TLS, so it must trust this checkout's authority.
            {**inherited, **sdk_environment(home, state)},
            # Only this checkout's authority: reading the whole bundle again for each question takes 20 ms.
            lambda: _answers(f"{where['arm']}/_emulator/health", certificates / "authority.pem"),
            root,
        ),
    ]  # fmt: skip
    if home.project.functions_app:
        key = state.functions_keys["masterKey"]
        result.append(
            Part(
                "functions",
                [
                    sys.executable, "-m", "emulator.functions_host", "--app", str(root / home.project.functions_app),
                    "--host", HOST, "--port", str(ports["functions"]), "--keys", str(home.path / "functions-keys.json"),
                ],
                {**inherited, **app_environment(home, state)},
                lambda: _answers(f"{where['functions']}/admin/host/status", headers={"x-functions-key": key}),
                root,
            )
        )  # fmt: skip
    return result


class Supervisor:
    """Runs the parts until it is told to stop."""

    def __init__(self, home: Home, state: State, event_copies: int) -> None:
        self._home = home
        self._state = state
        self._parts = parts(home, state, event_copies)
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self.broken = ""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        self._state.supervisor = processes.identify(os.getpid())
        self._home.save(self._state)
        keepers = []
        for part in self._parts:
            if part.name == "control":  # it creates containers as soon as it starts; MLflow is needed by jobs only
                await self._until_healthy(self._parts[0])
            await self._start(part)
            keepers.append(asyncio.create_task(self._keep(part)))
        await self._stopping.wait()
        for keeper in keepers:
            keeper.cancel()
        # The other way round, so that nothing calls what is gone already.
        for part in reversed(self._parts):
            if process := self._running.get(part.name):
                await processes.stop(process, CONTROL_GRACE if part.name == "control" else processes.GRACE)
        self._state.supervisor, self._state.processes = None, {}
        self._home.save(self._state)

    async def _start(self, part: Part) -> None:
        self._running[part.name] = process = await processes.start(
            part.command, part.folder, part.environment, self._home.logs / f"{part.name}.log"
        )
        log.info("part name=%s pid=%d started", part.name, process.pid)
        if identity := processes.identify(process.pid):
            self._state.processes[part.name] = identity
        self._home.save(self._state)

    async def _until_healthy(self, part: Part) -> None:
        while not self._stopping.is_set() and not await asyncio.to_thread(part.healthy):
            await asyncio.sleep(HEALTH_INTERVAL)

    async def _keep(self, part: Part) -> None:
        """Start a part again when it ends; give everything up when it ends again and again."""
        deaths: list[float] = []
        while True:
            code = await self._running[part.name].wait()
            await processes.stop(self._running[part.name])  # workers that outlived it would hold its port
            now = asyncio.get_running_loop().time()
            deaths = [*(at for at in deaths if now - at < RESTART_WINDOW), now]
            if len(deaths) > MAX_RESTARTS:
                log.error("part name=%s ends at once, exit_code=%s; giving up", part.name, code)
                self.broken = part.name
                self._stopping.set()
                return
            log.warning("part name=%s ended exit_code=%s; starting it again", part.name, code)
            await asyncio.sleep(RESTART_DELAY)
            await self._start(part)


def _listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def _answers(url: str, authority: Path | None = None, headers: dict[str, str] | None = None) -> bool:
    """Whether ``url`` answers 200. Plain urllib: the health of a loopback server needs no more."""
    context = ssl.create_default_context(cafile=str(authority)) if authority else None
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(urllib.request.Request(url, headers=headers or {}), timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--event-copies", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    home = Home(load_project(arguments.project), arguments.home)
    state = home.load()
    if state is None:
        raise SystemExit("The state folder is empty; start with `python -m emulator up`.")
    supervisor = Supervisor(home, state, arguments.event_copies)
    asyncio.run(supervisor.run())
    if supervisor.broken:
        raise SystemExit(f"{supervisor.broken} does not start; see {home.logs / supervisor.broken}.log")


if __name__ == "__main__":
    main()
