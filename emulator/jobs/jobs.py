"""The life of a job: submitted, run by its kind's executor, cancelled, preempted, ended, started again after a stop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from .. import processes
from ..images import ImageError
from ..storage import UriError
from ..store import Json, Resource, timestamp
from . import command as command_job
from . import pipeline as pipeline_job
from .mlflow_runs import end_run
from .nodes import Nodes
from .status import FINAL, UNFINISHED, JobError, JobTimeout

if TYPE_CHECKING:
    from ..control import Control

log = logging.getLogger("emulator.jobs")
# Who runs a job of each kind. An executor returns when the job's work is done, and raises JobError when it failed.
EXECUTORS: dict[str, Callable[["Jobs", str], Awaitable[None]]] = {
    "Command": command_job.execute,
    "Pipeline": pipeline_job.execute,
    "FineTuning": pipeline_job.execute,  # a pipeline of one step, to the service as well
}
MLFLOW_STATUS = {"Completed": "FINISHED", "Canceled": "KILLED", "Failed": "FAILED"}


class Jobs:
    """All jobs that have not ended, each with its task. A compute's nodes bound how many run at once.

    An executor is stopped by CancelledError, whose only argument is "cancel", "preempt" or, when the local Azure
    stops and the job shall go on with the next one, "shutdown".
    """

    def __init__(self, control: "Control") -> None:
        self.control = control
        self.nodes = Nodes(control.store)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cleared: asyncio.Task[Any] | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, id: str) -> asyncio.Lock:
        """Held while a job is looked for and stored, so that it is submitted once however many ask at once."""
        return self._locks.setdefault(id.lower(), asyncio.Lock())

    def submit(self, id: str) -> None:
        self._start(id, self._run(id))

    def _start(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[id] = asyncio.create_task(work)

        def forget(ended: asyncio.Task[None]) -> None:
            if self._tasks.get(id) is ended:  # else a new job has the name of a deleted one
                del self._tasks[id]

        task.add_done_callback(forget)

    def resume(self) -> None:
        """Start again what an earlier emulator left unfinished, as Azure does after a node was lost."""
        unfinished = list(self.control.store.find(f"{self.control.home.project.workspace_id}/jobs/%", UNFINISHED))
        left = [identity for job in unfinished for identity in job.internal.get("processes", [])]
        # All wait for the end of what is left, and then queue in the order in which they were submitted.
        self._cleared = asyncio.create_task(asyncio.to_thread(lambda: list(map(processes.kill_leftover, left))))
        for job in unfinished:
            if job.properties["status"] != "CancelRequested":
                log.info("job name=%s restarted_from=%s", job.name, job.properties["status"])
            self._start(job.id, self._run(job.id, self._cleared))

    def _parent_canceled(self, job: Resource) -> bool:
        """Whether a job above this one was to be cancelled when the local Azure was stopped."""
        parent = job.internal.get("parent_job")
        seen = {job.name.lower()}  # parents are what clients say: they may lead in circles
        while parent and parent.lower() not in seen:
            seen.add(parent.lower())
            above = self.control.store.get(f"{self.control.home.project.workspace_id}/jobs/{parent}")
            if above is None:
                return False
            if above.properties["status"] in ("CancelRequested", "Canceled"):
                return True
            parent = above.internal.get("parent_job")
        return False

    async def cancel(self, id: str) -> None:
        """Stop a job. Returns when its process has ended."""
        asked_before = self.job(id).properties["status"] == "CancelRequested"
        self.set_status(id, "CancelRequested")
        if task := self._tasks.get(id):
            # A second one would break off the first one's work, be that a preemption's.
            if not asked_before and not task.cancelling():
                task.cancel("cancel")
            await asyncio.wait([task])

    async def preempt(self, id: str) -> None:
        """Take a running job's nodes away: its processes are killed, and it queues again."""
        task = self._tasks.get(id)
        if task and not task.cancelling():
            preempted = self.job(id)
            preempted.internal["preemptions"] = preempted.internal.get("preemptions", 0) + 1
            self.control.store.save(preempted)
            task.cancel("preempt")

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

    async def _run(self, id: str, cleared: "asyncio.Task[Any] | None" = None) -> None:
        job = self.job(id)
        try:
            if cleared:
                await asyncio.shield(cleared)
            if self.job(id).properties["status"] == "CancelRequested" or self._parent_canceled(job):
                await self._finish(id, "Canceled")
                return
            while True:
                self.set_status(id, "Queued")
                try:
                    await EXECUTORS[job.properties["jobType"]](self, id)
                    break
                except asyncio.CancelledError as cancelled:
                    if cancelled.args != ("preempt",):
                        raise
                    log.info("job name=%s preempted", job.name)
                    if task := asyncio.current_task():
                        task.uncancel()
                    if self.job(id).properties["status"] == "CancelRequested":  # while its processes were stopped
                        await self._finish(id, "Canceled")
                        return
            await self._finish(id, "Completed")
        except asyncio.CancelledError as cancelled:
            if cancelled.args != ("shutdown",):
                await self._finish(id, "Canceled")
        except JobTimeout as timeout:
            await self._finish(id, "Canceled", str(timeout))
        except (JobError, ImageError, UriError) as error:
            await self._finish(id, "Failed", str(error))
        except Exception as error:
            log.exception("job name=%s", job.name)
            await self._finish(id, "Failed", f"The local Azure failed to run the job: {error}")

    def node(self, job: Resource) -> AbstractAsyncContextManager[None]:
        """The nodes that a job takes of its compute, held while it runs; the first to ask is the first to get them."""
        return self.nodes.take(job)

    async def _finish(self, id: str, status: str, error: str = "") -> None:
        # The status first: whatever stops this process after that, the job has ended and is not run again.
        self.remember(id, error=error, processes=[])
        self.set_status(id, status)
        job = self.job(id)
        log.info("job name=%s status=%s", job.name, status)
        if run := job.internal.get("mlflow_run"):
            await end_run(self.control.urls["mlflow"], run, MLFLOW_STATUS[status])

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
        current = job.properties["status"]
        if current == status or current in FINAL or (current == "CancelRequested" and status not in FINAL):
            return
        job.properties["status"] = status
        times: Json = job.internal.setdefault("times", {})
        times[status] = timestamp()
        self.control.store.save(job)
        if status in ("Running", *FINAL):
            self.control.publish_run_status(job)
