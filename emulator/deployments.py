"""Deployments that really serve: the model is fetched, the container's command runs as a process, probes decide."""

import asyncio
import contextlib
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from . import processes
from .arm.errors import ArmError
from .config import HOST, free_port
from .durations import seconds
from .images import ImageError, python_for, read_dockerfile
from .storage import UriError
from .store import Json, Resource

if TYPE_CHECKING:
    from .control import Control

log = logging.getLogger("emulator.deployments")
PROBE_INTERVAL = 0.2  # seconds; Azure's period (10 s by default) would only make a laptop wait
START_LIMIT = 300.0  # seconds for a deployment without a readiness probe of its own
RESTART_DELAYS = (0.5, 1, 2, 5, 10)  # seconds before a crashed deployment is started again; then it is Failed


@dataclass
class Server:
    """The running process of one deployment, and how many requests it works on."""

    process: asyncio.subprocess.Process
    port: int
    watcher: "asyncio.Task[None] | None" = None
    in_flight: int = 0
    freed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Deployments:
    """One process a deployment (``instance_count`` is stored, not multiplied)."""

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._servers: dict[str, Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: dict[str, asyncio.Task[None]] = {}  # the one task that may start a deployment's process

    def server(self, id: str) -> Server | None:
        return self._servers.get(id.lower())

    async def bring_up(self, id: str) -> None:
        """Start (or replace) a deployment's process and wait until it is ready. Raises ArmError when it is not."""
        await self._break_off(id)
        task = self._starting[id.lower()] = self._background(self._bring_up(id))
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise ArmError(400, "UserError", f"The deployment {_short(id)} was deleted or changed meanwhile.") from None
        finally:
            self._started(id, task)

    async def _bring_up(self, id: str) -> None:
        try:
            server = await self._launch(id)
        except (ImageError, UriError, ArmError) as error:
            self._set_state(id, "Failed")
            message = error.message if isinstance(error, ArmError) else str(error)
            raise ArmError(400, "UserError", message, "ResourceNotReady") from None
        except Exception:
            self._set_state(id, "Failed")  # else nobody could ever update it
            raise
        await self._replace(id, server)
        self._set_state(id, "Succeeded")
        log.info("deployment id=%s state=Succeeded port=%d", _short(id), server.port)

    def resume(self) -> None:
        """Serve again what served, and finish what was being created or deleted, before the local Azure was stopped."""
        pattern = f"{self._control.home.project.workspace_id}/onlineEndpoints/%/deployments/%"
        for deployment in self._control.store.find(pattern):
            processes.kill_leftover(deployment.internal.get("process"))
            if deployment.properties["provisioningState"] in ("Succeeded", "Creating", "Updating"):
                self._background(self._resume_one(deployment.id))
            elif deployment.properties["provisioningState"] == "Deleting":
                self._background(self.remove(deployment.id))

    async def remove(self, id: str) -> None:
        """Stop a deployment, one that is still being created too, and forget it."""
        self._set_state(id, "Deleting")
        await self._break_off(id)
        await self._replace(id, None)
        self._control.store.delete(id)
        shutil.rmtree(self._folder(id), ignore_errors=True)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        servers = (self._end(server) for server in self._servers.values())
        await asyncio.gather(*tasks, *servers, return_exceptions=True)

    def log_tail(self, id: str, lines: int) -> str:
        return processes.tail(self._folder(id) / "server.log", lines, 1 << 20)

    async def _break_off(self, id: str) -> None:
        """End what is starting the deployment's process, and that process."""
        if task := self._starting.get(id.lower()):
            task.cancel()
            await asyncio.wait([task])

    def _started(self, id: str, task: "asyncio.Task[None]") -> None:
        if self._starting.get(id.lower()) is task:
            del self._starting[id.lower()]

    async def _resume_one(self, id: str) -> None:
        try:
            await self.bring_up(id)
        except ArmError as error:
            log.error("deployment id=%s state=Failed reason=%s", _short(id), error.message.splitlines()[0])

    async def _launch(self, id: str) -> Server:
        """A new process for the deployment, ready to answer."""
        deployment = self._deployment(id)
        folder = self._folder(id)
        environment = self._environment_of(deployment)
        context = (environment.properties.get("build") or {}).get("contextUri")
        if not context:
            raise ImageError(
                f"The image {environment.properties.get('image')} cannot be run without Docker; give the environment a"
                " build context, whose Dockerfile names the command."
            )
        code = folder / "context"
        shutil.rmtree(code, ignore_errors=True)
        await self._control.storage.download(self._control.locate(context), code)
        dockerfile = read_dockerfile(code / (environment.properties["build"].get("dockerfilePath") or "Dockerfile"))
        python = python_for(self._control.home.project, dockerfile.base)
        port = free_port()
        variables = {
            **processes.base_environment(python),
            **dockerfile.environment,
            **{k: str(v) for k, v in (deployment.properties.get("environmentVariables") or {}).items()},
            **await self._model(deployment, folder),
            "PORT": str(port),
        }
        process = await processes.start(dockerfile.command, code, variables, folder / "server.log")
        server = Server(process, port)
        try:
            deployment = self._deployment(id)
            deployment.internal["process"] = processes.identify(process.pid)
            self._control.store.save(deployment)
            await self._until_ready(deployment, environment, server)
        except BaseException:
            await processes.stop(process)
            raise
        server.watcher = self._background(self._watch(id, server))
        return server

    def _environment_of(self, deployment: Resource) -> Resource:
        environment = self._control.store.get(deployment.properties["environmentId"])
        if environment is None:
            raise ImageError("The deployment's environment was deleted.")
        return environment

    async def _model(self, deployment: Resource, folder: Path) -> dict[str, str]:
        """Fetch the model to where Azure mounts it: AZUREML_MODEL_DIR/<the registered folder's name>/."""
        id = deployment.properties.get("model")
        if not id:
            return {}
        model = self._control.store.get(id)
        if model is None:
            raise UriError("The deployment's model was deleted.")
        name, version = id.split("/models/")[1].split("/versions/")
        location = self._control.locate(model.properties["modelUri"])
        mount = folder / "azureml-models" / name / version
        if not mount.exists():
            # Under another name until it is whole: a stop in between must not leave a part of it for the next start.
            partial = mount.with_name(f".{version}")
            shutil.rmtree(partial, ignore_errors=True)
            await self._control.storage.download(location, partial / (Path(location.path).name or "model"))
            partial.rename(mount)
        return {"AZUREML_MODEL_DIR": str(mount)}

    async def _until_ready(self, deployment: Resource, environment: Resource, server: Server) -> None:
        route = (environment.properties.get("inferenceConfig") or {}).get("readinessRoute") or {}
        url = f"http://{HOST}:{server.port}{route.get('path') or '/'}"
        limit = _probe_limit(deployment.properties.get("readinessProbe") or {})
        deadline = asyncio.get_running_loop().time() + limit
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                tail = self.log_tail(deployment.id, 15)
                if server.process.returncode is not None:
                    raise ArmError(
                        400, "UserError",
                        f"The container ended with exit code {server.process.returncode}. Its last lines:\n{tail}",
                    )  # fmt: skip
                if asyncio.get_running_loop().time() > deadline:
                    raise ArmError(
                        400, "UserError",
                        f"The readiness probe {url} did not succeed within {limit:.0f} s. The last lines:\n{tail}",
                    )  # fmt: skip
                await asyncio.sleep(PROBE_INTERVAL)

    async def _replace(self, id: str, server: Server | None) -> None:
        """Let ``server`` take over; the old process ends when its requests have been answered."""
        old = self._servers.pop(id.lower(), None)
        if server is not None:
            self._servers[id.lower()] = server
        if old is not None:
            try:
                async with old.freed:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(old.freed.wait_for(lambda: old.in_flight == 0), 30)
            finally:
                await self._end(old)

    async def _end(self, server: Server) -> None:
        if server.watcher:
            server.watcher.cancel()
        await processes.stop(server.process)

    async def _watch(self, id: str, server: Server) -> None:
        """Start a crashed process again, a few times; then the deployment is Failed."""
        await server.process.wait()
        await processes.stop(server.process)  # its children, which may outlive it
        if self._servers.get(id.lower()) is not server:
            return  # another serves already
        del self._servers[id.lower()]
        if id.lower() in self._starting:
            return  # another is on its way
        task = self._starting[id.lower()] = self._background(self._restart(id, server))
        task.add_done_callback(lambda task: self._started(id, task))

    async def _restart(self, id: str, server: Server) -> None:
        for delay in RESTART_DELAYS:
            log.warning("deployment id=%s crashed exit_code=%s", _short(id), server.process.returncode)
            await asyncio.sleep(delay)
            try:
                self._servers[id.lower()] = await self._launch(id)
                return
            except (ImageError, UriError, ArmError) as error:
                log.error("deployment id=%s restart failed: %s", _short(id), error)
        self._set_state(id, "Failed")

    def _background(self, work: "asyncio._CoroutineLike[None]") -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _deployment(self, id: str) -> Resource:
        deployment = self._control.store.get(id)
        if deployment is None:
            raise ArmError(404, "UserError", f"The deployment {_short(id)} was deleted.", "NotFound")
        return deployment

    def _set_state(self, id: str, state: str) -> None:
        deployment = self._control.store.get(id)
        if deployment is not None:
            deployment.properties["provisioningState"] = state
            self._control.store.save(deployment)

    def _folder(self, id: str) -> Path:
        endpoint, deployment = id.split("/onlineEndpoints/")[1].split("/deployments/")
        return self._control.home.folder("deployments", endpoint, deployment)


def _probe_limit(probe: Json) -> float:
    """How long Azure would wait for a readiness probe: initial delay + period x failure threshold, in seconds."""

    if not probe:
        return START_LIMIT
    delay, period = seconds(probe.get("initialDelay") or "PT10S"), seconds(probe.get("period") or "PT10S")
    return delay + period * int(probe.get("failureThreshold") or 30)


def _short(id: str) -> str:
    return id.split("/onlineEndpoints/")[-1].replace("/deployments/", "/")
