"""The life of a job: submitted, run by its kind's executor, cancelled, ended, started again after a stop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from . import command_job, processes
from .images import ImageError
from .job_status import FINAL, JobError
from .mlflow_runs import end_run
from .storage import UriError
from .store import Json, Resource, timestamp

if TYPE_CHECKING:
    from .control import Control

log = logging.getLogger("emulator.jobs")
# Who runs a job of each kind. An executor returns when the job's work is done, and raises JobError when it failed.
EXECUTORS: dict[str, Callable[["Jobs", str], Awaitable[None]]] = {"Command": command_job.execute}


class Jobs:
    """All jobs that have not ended, each with its task. A compute's nodes bound how many run at once."""

    def __init__(self, control: "Control") -> None:
        self.control = control
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._nodes: dict[str, asyncio.Semaphore] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, id: str) -> asyncio.Lock:
        """Held while a job is looked for and stored, so that it is submitted once however many ask at once."""
        return self._locks.setdefault(id.lower(), asyncio.Lock())

    def submit(self, id: str) -> None:
        self._start(id, self._run(id))

    def _start(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[id] = asyncio.create_task(work)
        self._tasks[id].add_done_callback(lambda _: self._tasks.pop(id, None))

    def resume(self) -> None:
        """Start again what an earlier emulator left unfinished, as Azure does after a node was lost."""
        for job in self.control.store.find(f"{self.control.home.project.workspace_id}/jobs/%"):
            if job.properties.get("status") in FINAL:
                continue
            processes.kill_leftover(job.internal.get("process"))
            if job.properties["status"] == "CancelRequested":
                self._start(job.id, self._finish(job.id, "Canceled"))
                continue
            log.info("job name=%s restarted_from=%s", job.name, job.properties["status"])
            self.submit(job.id)

    async def cancel(self, id: str) -> None:
        """Stop a job. Returns when its process has ended."""
        asked_before = self.job(id).properties["status"] == "CancelRequested"
        self.set_status(id, "CancelRequested")
        if task := self._tasks.get(id):
            if not asked_before:  # a second one would break off the first one's work
                task.cancel()
            await asyncio.wait([task])

    async def wait(self, id: str) -> Resource:
        """The job, once it has ended."""
        if task := self._tasks.get(id):
            await asyncio.wait([task])
        return self.job(id)

    async def close(self) -> None:
        """Stop all processes; their jobs stay unfinished and start again with the next emulator."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel("shutdown")
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, id: str) -> None:
        job = self.job(id)
        try:
            self.set_status(id, "Queued")
            await EXECUTORS[job.properties["jobType"]](self, id)
            await self._finish(id, "Completed")
        except asyncio.CancelledError as cancelled:
            if cancelled.args != ("shutdown",):
                await self._finish(id, "Canceled")
        except (JobError, ImageError, UriError) as error:
            await self._finish(id, "Failed", str(error))
        except Exception as error:
            log.exception("job name=%s", job.name)
            await self._finish(id, "Failed", f"The local Azure failed to run the job: {error}")

    def node(self, job: Resource) -> asyncio.Semaphore:
        compute = self.control.store.get(job.properties["computeId"])
        nodes = int(compute.properties["properties"]["scaleSettings"]["maxNodeCount"]) if compute else 1
        return self._nodes.setdefault(job.properties["computeId"].lower(), asyncio.Semaphore(nodes))

    async def _finish(self, id: str, status: str, error: str = "") -> None:
        job = self.job(id)
        if run := job.internal.get("mlflow_run"):
            await end_run(
                self.control.urls["mlflow"],
                run,
                {"Completed": "FINISHED", "Canceled": "KILLED"}.get(status, "FAILED"),
            )
        self.remember(id, error=error, process=None)
        self.set_status(id, status)
        log.info("job name=%s status=%s", job.name, status)

    def job(self, id: str) -> Resource:
        job = self.control.store.get(id)
        if job is None:
            raise JobError("The job was deleted.")
        return job

    def remember(self, id: str, **known: object) -> None:
        job = self.job(id)
        job.internal.update(known)
        self.control.store.save(job)

    def set_status(self, id: str, status: str) -> None:
        job = self.job(id)
        if job.properties["status"] == status:
            return
        job.properties["status"] = status
        times: Json = job.internal.setdefault("times", {})
        times[status] = timestamp()
        self.control.store.save(job)
        if status in ("Running", *FINAL):
            self.control.publish_run_status(job)
