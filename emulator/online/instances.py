"""One instance of a deployment: a process that is started, probed, and started again when it fails."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from .. import processes
from ..config import HOST, free_port
from .containers import Container
from .probes import Probe

log = logging.getLogger("emulator.instances")
PROBE_INTERVAL = 0.2  # seconds until it is ready; Azure's period (10 s by default) would only make a laptop wait
RESTART_DELAYS = (0.5, 1, 2, 5, 10)  # seconds before each restart; one failure more and the instance is given up
STABLE_AFTER = 300.0  # seconds of service after which earlier failures are forgotten


class StartError(Exception):
    """The container ended, or was not ready in time; the message holds its last lines."""


@dataclass(frozen=True)
class Events:
    """What the deployment wants to know: a process was started, readiness changed, the instance was given up."""

    started: Callable[[int], None]
    changed: Callable[[], None]
    given_up: Callable[["Instance"], None]


class Instance:
    """The process, its port, and how many requests it works on. ``ready`` says whether it may get more."""

    def __init__(self, container: Container, liveness: Probe, readiness: Probe, log_path: Path, events: Events) -> None:
        self._container = container
        self._liveness = liveness
        self._readiness = readiness
        self._log_path = log_path
        self._events = events
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.address = ""
        self.ready = False
        self.in_flight = 0

    async def start(self) -> None:
        """Returns when the container is ready. Raises StartError when it ends, or its probes' time does."""
        async with aiohttp.ClientSession() as session:
            await self._launch(session)
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        self.ready = False
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        await self._end()

    async def _launch(self, session: aiohttp.ClientSession) -> None:
        port = free_port()
        self.address = f"http://{HOST}:{port}"
        command = [word.replace("{port}", str(port)) for word in self._container.command]
        variables = {**self._container.variables, "PORT": str(port)}
        try:
            self._process = await processes.start(command, self._container.folder, variables, self._log_path)
        except OSError as error:
            raise StartError(f"The container's command {command[0]} cannot be started: {error.strerror}.") from None
        self._events.started(self._process.pid)
        try:
            await self._until_ready(session, self._process)
        except BaseException:
            await self._end()
            raise
        self.ready = True
        self._events.changed()

    async def _until_ready(self, session: aiohttp.ClientSession, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + self._readiness.limit
        successes = 0
        while successes < self._readiness.success_threshold:
            good = await self._readiness.succeeds(session, self.address)
            successes = successes + 1 if good else 0
            tail = processes.tail(self._log_path, 15)
            if process.returncode is not None:
                raise StartError(
                    f"User container has crashed or terminated with exit code {process.returncode}.\n{tail}"
                )
            if time.monotonic() > deadline:
                raise StartError(
                    f"The readiness probe GET {self._readiness.path} did not succeed in {self._readiness.limit:.0f} s."
                    f"\n{tail}"
                )
            if not good:
                await asyncio.sleep(PROBE_INTERVAL)

    async def _supervise(self) -> None:
        """Start the container again whenever it ends or its liveness probe fails, later each time, then give up."""
        failures = 0
        async with aiohttp.ClientSession() as session:
            while True:
                since = time.monotonic()
                if self.ready:
                    reason = await self._failure(session)
                    self.ready = False
                    self._events.changed()
                    await self._end()
                    if time.monotonic() - since > STABLE_AFTER:
                        failures = 0
                if failures == len(RESTART_DELAYS):
                    break
                self._note(f"{reason}; it is started again in {RESTART_DELAYS[failures]:g} s")
                await asyncio.sleep(RESTART_DELAYS[failures])
                failures += 1
                try:
                    await self._launch(session)
                except StartError as error:
                    reason = str(error).splitlines()[0]
        self._note(f"CrashLoopBackOff: {reason}; it failed {failures + 1} times and is not started again")
        self._events.given_up(self)

    async def _failure(self, session: aiohttp.ClientSession) -> str:
        """Wait until the process ends or its liveness probe fails; follow the readiness probe meanwhile."""
        process = self._process
        assert process is not None  # noqa: S101 - it was started
        alive = self._liveness.changes(session, self.address)
        ended = asyncio.create_task(process.wait())
        dead = asyncio.ensure_future(anext(alive))
        ready = asyncio.create_task(self._follow_readiness(session))
        try:
            await asyncio.wait([ended, dead], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return f"The container ended with exit code {process.returncode}"
            return f"The liveness probe GET {self._liveness.path} failed {self._liveness.failure_threshold} times"
        finally:
            for task in (ended, dead, ready):
                task.cancel()
            await asyncio.wait([ended, dead, ready])

    async def _follow_readiness(self, session: aiohttp.ClientSession) -> None:
        async for ready in self._readiness.changes(session, self.address):
            self.ready = ready
            self._events.changed()

    async def _end(self) -> None:
        if self._process is not None:
            await processes.stop(self._process)

    def _note(self, text: str) -> None:
        """A line in the log that getLogs shows, where Azure's own platform writes too."""
        log.warning("instance %s", text)
        with self._log_path.open("a", encoding="utf-8") as file:
            file.write(f"[local Azure] {text}.\n")
