"""A pipeline really runs: each step is a job of its own, started when the steps before it have completed."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..store import Json, Resource
from .mlflow_runs import start_run
from .outputs import JobOutputs
from .status import EXECUTION_LOG, FINAL, JobError, artifact_location

if TYPE_CHECKING:
    from .jobs import Jobs


async def execute(jobs: "Jobs", id: str) -> None:
    """Run a pipeline job, or another whose plan has steps. Raises JobError when a step fails."""
    await PipelineRun(jobs, id).run()


class PipelineRun:
    """One run of one pipeline. After the local Azure was stopped, the next one goes on with what its steps left."""

    def __init__(self, jobs: "Jobs", id: str) -> None:
        self._jobs = jobs
        self._control = jobs.control
        self._job = jobs.job(id)
        self._steps: Json = self._job.internal["plan"]["steps"]
        self._folder = self._control.home.folder("jobs", self._job.name)
        self._log_stored: int | None = None
        self._running: dict[asyncio.Task[Resource], str] = {}
        self._ended: dict[str, str] = {}  # step -> status

    async def run(self) -> None:
        self._jobs.set_status(self._job.id, "Preparing")
        self._jobs.remember(self._job.id, execution_log=True)
        self._jobs.set_status(self._job.id, "Running")
        try:
            await self._run_steps()
        except BaseException as error:
            for waiting in self._running:
                waiting.cancel()
            if error.args != ("shutdown",):  # then the steps stay as they are, for the next emulator
                await self._cancel(self._steps)
            raise
        self._jobs.set_status(self._job.id, "Finalizing")
        await self._log("Finishing experiment: no runs left and nothing to schedule.")
        outputs = JobOutputs(self._control, self._job, self._folder / "outputs")
        assets = self._jobs.job(self._job.id).internal.get("registered") or outputs.assets()
        self._jobs.remember(self._job.id, registered=assets)  # before: who is stopped here makes no second version
        outputs.register(assets)

    async def _run_steps(self) -> None:
        """Raises JobError when a step did not complete."""
        while ready := self._ready():
            await self._start(ready)
            while self._running and not self._ready():
                done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                await self._take_in(done)
        failed = [step for step, status in self._ended.items() if status != "Completed"]
        if failed:  # Guess: a pipeline with a failed step is Failed even if it was to continue on step failure
            raise JobError(self._failure(failed))

    def _ready(self) -> list[str]:
        """The steps that can start now."""
        if self._job.internal["plan"]["stop_on_failure"] and any(s != "Completed" for s in self._ended.values()):
            return []
        begun = {*self._ended, *self._running.values()}
        return [
            step
            for step, planned in self._steps.items()
            if step not in begun and all(self._ended.get(needed) == "Completed" for needed in planned["needs"])
        ]

    async def _start(self, steps: list[str]) -> None:
        children = {step: await self._child(step) for step in steps}
        new = [step for step, child in children.items() if child.properties["status"] == "NotStarted"]
        if new:
            names = ",".join(f"{step}:{children[step].name}" for step in new[:5])
            await self._log(f"Submitting {len(new)} runs, first five are: {names}")
        for step, child in children.items():
            self._running[asyncio.create_task(self._jobs.wait(child.id))] = step

    async def _child(self, step: str) -> Resource:
        """The job of a step: made now, or by an emulator before this one."""
        planned = self._steps[step]
        id = self._child_id(step)
        child = self._control.store.get(id)
        if child is None:
            run, experiment = await start_run(
                self._control.urls["mlflow"],
                self._job.properties["experimentName"],
                planned["properties"]["displayName"],
                parent=self._job.internal["mlflow_run"],
            )
            known = {
                **planned["known"],
                "mlflow_run": run,
                "mlflow_experiment": experiment,
                "parent_job": self._job.name,
                "root_job": self._job.internal.get("root_job") or self._job.name,
                "plan": planned.get("plan"),
            }
            child = self._control.store.put(id, {"properties": planned["properties"]}, known)
            self._jobs.submit(id)
        return child

    async def _take_in(self, done: Iterable[asyncio.Task[Resource]]) -> None:
        """Note how steps ended. The first that fails ends the others, when the pipeline is to stop on failure."""
        for task in done:
            step, child = self._running.pop(task), task.result()
            self._ended[step] = child.properties["status"]
            await self._log(f"Completing processing run id {child.name} ({step}): {child.properties['status']}.")
        failed = any(status != "Completed" for status in self._ended.values())
        if failed and self._job.internal["plan"]["stop_on_failure"] and self._running:
            await self._log("Execution of experiment failed, update experiment status and cancel running nodes.")
            await self._cancel(self._running.values())

    async def _cancel(self, steps: Iterable[str]) -> None:
        """Cancel those of ``steps`` that have begun and not ended."""
        children = filter(None, (self._control.store.get(self._child_id(step)) for step in list(steps)))
        running = [child.id for child in children if child.properties["status"] not in FINAL]
        await asyncio.gather(*(self._jobs.cancel(id) for id in running))

    def _child_id(self, step: str) -> str:
        return f"{self._control.home.project.workspace_id}/jobs/{self._steps[step]['name']}"

    def _failure(self, failed: list[str]) -> str:
        """What the service says of a pipeline with failed steps, and what each of them said."""
        lines = [
            f"Pipeline has failed child jobs. Failed nodes: {', '.join(f'/{step}' for step in failed)}. For more"
            " details and logs, please go to the job detail page and check the child jobs."
        ]
        for step in failed:
            child = self._jobs.job(self._child_id(step))
            why = child.internal.get("error") or f"it is {self._ended[step]}"
            lines.append(f"/{step} ({child.name}): {why}")
        return "\n".join(lines)

    async def _log(self, line: str) -> None:
        """A line of logs/azureml/executionlogs.txt, which `jobs.stream` shows."""
        # Guess: what the lines of a pipeline's executionlogs.txt say; here they name the steps, not numbers of nodes
        file = self._folder / "executionlogs.txt"
        with file.open("a", encoding="utf-8") as log:
            log.write(f"[{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}] {line}\n")
        location = artifact_location(self._job.name, EXECUTION_LOG)
        self._log_stored = await self._control.storage.append(file, location, self._log_stored)
