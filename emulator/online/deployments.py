"""Deployments that really serve: created, replaced without a gap, scaled, removed, and there again after a restart."""

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .. import processes
from ..arm.errors import ArmError
from ..arm.routing import short_id
from ..images import ImageError
from ..storage import UriError
from ..store import Json, Resource
from .containers import Container, Preparation
from .instances import Events, Instance, StartError
from .probes import probe
from .servers import Server

if TYPE_CHECKING:
    from ..control import Control

log = logging.getLogger("emulator.deployments")
# What decides how the container runs. A change of anything else leaves the instances that are there alone.
SPEC = (
    "environmentId", "environmentVariables", "model", "modelMountPath", "codeConfiguration", "livenessProbe",
    "readinessProbe",
)  # fmt: skip
LOGS = {"InferenceServer": "server.log", "StorageInitializer": "storage.log"}


class Deployments:
    """The servers of all deployments, by the id of their resource. Where that id lies does not matter here."""

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._servers: dict[str, Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._working: dict[str, asyncio.Task[None]] = {}  # the one task that may change a deployment's server

    def server(self, id: str) -> Server | None:
        """What serves the deployment; None when nothing does."""
        return self._servers.get(id.lower())

    async def bring_up(self, id: str) -> None:
        """Start, replace or scale what serves a deployment, and wait until it is ready.

        What served before serves on until then. Raises ArmError when it does not become ready; it is then Failed.
        """
        await self._break_off(id)
        task = self._working[id.lower()] = self._background(self._bring_up(id))
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise ArmError(
                400, "UserError", f"The deployment {short_id(id)} was deleted or changed meanwhile."
            ) from None
        finally:
            if self._working.get(id.lower()) is task:
                del self._working[id.lower()]

    async def remove(self, id: str) -> None:
        """Stop a deployment, one that is still being created too, and forget it."""
        self.set_state(id, "Deleting")
        await self._break_off(id)
        if server := self._servers.pop(id.lower(), None):
            await server.shrink(len(server.instances))
        self._control.store.delete(id)
        await asyncio.to_thread(shutil.rmtree, self._folder(id), ignore_errors=True)

    async def remove_endpoint(self, id: str) -> None:
        """Remove an online endpoint with all its deployments."""
        deployments = self._control.store.select(f"{id}/deployments")
        await asyncio.gather(*(self.remove(deployment.id) for deployment in deployments))
        self._control.store.delete(id)

    def resume(self) -> None:
        """Serve again what served, and finish what was begun, before the local Azure was stopped."""
        endpoints = f"{self._control.home.project.workspace_id}/onlineEndpoints"
        for deployment in list(self._control.store.find(f"{endpoints}/%/deployments/%")):
            self.resume_one(deployment)
        for endpoint in self._control.store.select(endpoints):
            match endpoint.properties["provisioningState"]:
                case "Creating" | "Updating":
                    self.set_state(endpoint.id, "Succeeded")  # there is nothing more to it here
                case "Deleting":
                    self._background(self.remove_endpoint(endpoint.id))

    def resume_one(self, deployment: Resource) -> None:
        """The same for one deployment, wherever its resource lies."""
        for identity in deployment.internal.pop("processes", []):
            processes.kill_leftover(identity)
        self._control.store.save(deployment)
        shutil.rmtree(self._folder(deployment.id) / "revisions", ignore_errors=True)
        state = deployment.properties["provisioningState"]
        if state == "Deleting":
            self._background(self.remove(deployment.id))
        elif state != "Failed" or deployment.internal.get("serving"):
            self._background(self._bring_up_again(deployment.id))

    def log_tail(self, id: str, lines: int, container: str = "InferenceServer") -> str:
        """The end of a log; ``container`` is a key of LOGS."""
        return processes.tail(self._folder(id) / LOGS[container], lines, 1 << 20)

    def set_state(self, id: str, state: str) -> None:
        deployment = self._control.store.get(id)
        if deployment is not None:
            deployment.properties["provisioningState"] = state
            self._control.store.save(deployment)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        instances = [instance for server in self._servers.values() for instance in server.instances]
        await asyncio.gather(*tasks, *(instance.stop() for instance in instances), return_exceptions=True)

    async def _bring_up_again(self, id: str) -> None:
        """After a restart. When the last update failed, or fails now, what served before it serves again."""
        try:
            if self._deployment(id).properties["provisioningState"] != "Failed":
                await self.bring_up(id)
                return
        except ArmError as error:
            log.error("deployment id=%s state=Failed reason=%s", short_id(id), error.message.splitlines()[0])
        deployment = self._control.store.get(id)
        if deployment is None or not (served := deployment.internal.get("serving")):
            return
        deployment.properties.update(served)  # of this copy: the store keeps what was asked for
        try:
            await self._serve(deployment)
        except (ImageError, UriError, StartError) as error:
            log.error("deployment id=%s former=Failed reason=%s", short_id(id), str(error).splitlines()[0])

    async def _break_off(self, id: str) -> None:
        """End what works on the deployment, and what that has started."""
        if task := self._working.get(id.lower()):
            task.cancel()
            await asyncio.wait([task])

    async def _bring_up(self, id: str) -> None:
        try:
            await self._serve(self._deployment(id))
        except (ImageError, UriError, StartError) as error:
            self.set_state(id, "Failed")
            raise ArmError(400, "ResourceNotReady", str(error), "ResourceNotReady") from None
        except Exception:
            self.set_state(id, "Failed")  # else nobody could ever update it
            raise
        self.set_state(id, "Succeeded")
        self._note_serving(id, {name: self._deployment(id).properties.get(name) for name in SPEC})
        log.info("deployment id=%s state=Succeeded", short_id(id))

    async def _serve(self, deployment: Resource) -> None:
        wanted = int((deployment.body.get("sku") or {}).get("capacity") or 1)
        spec = {name: deployment.properties.get(name) for name in SPEC}
        old = self.server(deployment.id)
        if old is not None and old.spec == spec and len(old.ready) == len(old.instances) > 0:
            difference = wanted - len(old.instances)
            if difference > 0:
                await old.grow(difference)
            elif difference < 0:
                self._background(old.shrink(-difference))
            return
        folder = self._folder(deployment.id) / "revisions" / str(time.time_ns())  # the older one's files are in use
        try:
            container = await self._prepare(deployment, folder)
            server = Server(spec, folder, lambda server: self._instance(deployment, container, server))
            await server.grow(wanted)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        self._servers[deployment.id.lower()] = server
        if old is not None:
            self._background(self._retire(old))

    async def _prepare(self, deployment: Resource, revision: Path) -> Container:
        folder = self._folder(deployment.id)

        def note(line: str) -> None:
            with (folder / LOGS["StorageInitializer"]).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

        try:
            preparation = Preparation(self._control, deployment, revision, folder / "azureml-models", note)
            return await preparation.run()
        except (ImageError, UriError) as error:
            note(str(error))
            raise

    def _instance(self, deployment: Resource, container: Container, server: Server) -> Instance:
        id = deployment.id

        def given_up(instance: Instance) -> None:
            server.drop(instance)
            if not server.instances and self.server(id) is server:
                self._note_serving(id, None)
                self.set_state(id, "Failed")  # Guess: a deployment that served and then crashes for good becomes Failed

        return Instance(
            container,
            probe(container.liveness, deployment.properties.get("livenessProbe")),
            probe(container.readiness, deployment.properties.get("readinessProbe")),
            self._folder(id) / LOGS["InferenceServer"],
            Events(lambda pid: self._remember(id, pid), server.notify, given_up),
        )

    def _note_serving(self, id: str, spec: Json | None) -> None:
        """Note what serves, so that a restart can serve it again although a later update has failed."""
        if deployment := self._control.store.get(id):
            deployment.internal["serving"] = spec
            self._control.store.save(deployment)

    def _remember(self, id: str, pid: int) -> None:
        """Note a process in the store, so that the next emulator ends it when this one is killed."""
        if deployment := self._control.store.get(id):
            known = [identity for identity in deployment.internal.get("processes", []) if processes.alive(identity)]
            deployment.internal["processes"] = [*known, *filter(None, [processes.identify(pid)])]
            self._control.store.save(deployment)

    async def _retire(self, old: Server) -> None:
        """Let the replaced server finish its requests; then its files can go."""
        await old.shrink(len(old.instances))
        await asyncio.to_thread(shutil.rmtree, old.folder, ignore_errors=True)

    def _background(self, work: "asyncio._CoroutineLike[None]") -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _deployment(self, id: str) -> Resource:
        deployment = self._control.store.get(id)
        if deployment is None:
            raise ArmError(404, "UserError", f"The deployment {short_id(id)} was deleted.", "NotFound")
        return deployment

    def _folder(self, id: str) -> Path:
        return self._control.home.folder("deployments", *short_id(id).lower().split("/"))
