"""Jobs that really run: code and inputs are fetched, a process runs, logs and outputs are stored, events sent."""

import asyncio
import logging
import re
import shlex
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from . import processes
from .durations import seconds
from .images import ImageError, python_for
from .mlflow_runs import end_run
from .storage import DATASTORES, Location, UriError
from .store import Json, Resource, timestamp

if TYPE_CHECKING:
    from .control import Control

log = logging.getLogger("emulator.jobs")
FINAL = ("Completed", "Failed", "Canceled")
LOG_UPLOAD_INTERVAL = 1.0  # seconds; Azure's studio shows a log a few seconds late too


class JobError(Exception):
    """Why a job ended as Failed; the message is its error."""


def artifact_location(job: str, path: str) -> Location:
    """Where Azure ML keeps a job's artefacts: logs under ``user_logs/``, system outputs beside them."""
    return Location(DATASTORES["workspaceartifactstore"], f"ExperimentRun/dcid.{job}/{path}")


class Jobs:
    """Runs submitted jobs: as many at once as their compute has nodes, in the order of submission."""

    def __init__(self, control: "Control") -> None:
        self._control = control
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
        for job in self._control.store.find(f"{self._control.home.project.workspace_id}/jobs/%"):
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
        asked_before = self._job(id).properties["status"] == "CancelRequested"
        self._set_status(id, "CancelRequested")
        if task := self._tasks.get(id):
            if not asked_before:  # a second one would break off the first one's work
                task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """Stop all processes; their jobs stay unfinished and start again with the next emulator."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel("shutdown")
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, id: str) -> None:
        job = self._job(id)
        try:
            self._set_status(id, "Queued")
            async with self._node(job):
                await self._execute(id)
            await self._finish(id, "Completed")
        except asyncio.CancelledError as cancelled:
            if cancelled.args != ("shutdown",):
                await self._finish(id, "Canceled")
        except (JobError, ImageError, UriError) as error:
            await self._finish(id, "Failed", str(error))
        except Exception as error:
            log.exception("job name=%s", job.name)
            await self._finish(id, "Failed", f"The local Azure failed to run the job: {error}")

    def _node(self, job: Resource) -> asyncio.Semaphore:
        compute = self._control.store.get(job.properties["computeId"])
        nodes = int(compute.properties["properties"]["scaleSettings"]["maxNodeCount"]) if compute else 1
        return self._nodes.setdefault(job.properties["computeId"].lower(), asyncio.Semaphore(nodes))

    async def _execute(self, id: str) -> None:
        self._set_status(id, "Preparing")
        job = self._job(id)
        folder = self._control.home.folder("jobs", job.name)
        shutil.rmtree(folder)
        code = folder / "code"
        code.mkdir(parents=True)
        python = self._python(job)
        if job.properties.get("codeId"):
            await self._control.storage.download(self._code(job), code)
        command = await self._command(job, folder)
        await self._control.storage.ensure_container(DATASTORES["workspaceartifactstore"])
        self._remember(id, log=True)
        self._set_status(id, "Running")
        environment = {
            **processes.base_environment(python),
            **self._environment(job),
            "MLFLOW_RUN_ID": job.internal["mlflow_run"],
        }
        output = folder / "std_log.txt"
        process = await processes.start(["bash", "-c", command], code, environment, output)
        self._remember(id, process=processes.identify(process.pid))
        exit_code = await self._follow(job, process, output)
        if exit_code != 0:
            raise JobError(
                f"The job's command ended with exit code {exit_code}. Last lines of user_logs/std_log.txt:\n"
                + processes.tail(output)
            )
        self._set_status(id, "Finalizing")
        await self._store_outputs(job, folder)

    def _python(self, job: Resource) -> Path:
        environment = self._control.store.get(job.properties["environmentId"])
        if environment is None:
            raise JobError("The job's environment was deleted.")
        build = environment.properties.get("build") or {}
        image = environment.properties.get("image") or f"build:{build.get('contextUri', '')}"
        return python_for(self._control.home.project, image)

    def _code(self, job: Resource) -> Location:
        code = self._control.store.get(job.properties["codeId"])
        if code is None:
            raise JobError("The job's code was deleted.")
        return self._control.storage.locate(code.properties["codeUri"])

    async def _command(self, job: Resource, folder: Path) -> str:
        """The command with its ``${{inputs.x}}`` fetched and its ``${{outputs.x}}`` made."""
        values: dict[str, str] = {}
        for name, value in job.properties["inputs"].items():
            if value["jobInputType"] == "literal":
                values[f"inputs.{name}"] = str(value["value"])
                continue
            location = self._control.locate(value["uri"])
            target = folder / "inputs" / name
            if value["jobInputType"] == "uri_file":
                target = target / Path(location.path).name
            await self._control.storage.download(location, target)
            values[f"inputs.{name}"] = shlex.quote(str(target))
        for name in job.properties["outputs"]:
            target = folder / "outputs" / name
            target.mkdir(parents=True)
            values[f"outputs.{name}"] = shlex.quote(str(target))

        def replace(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise JobError(f"The command uses ${{{{{match[1]}}}}}, which the job does not define.")
            return values[match[1]]

        return re.sub(r"\$\{\{\s*([\w.]+)\s*\}\}", replace, job.properties["command"])

    def _environment(self, job: Resource) -> dict[str, str]:
        project = self._control.home.project
        return {
            "AZUREML_RUN_ID": job.name,
            "AZUREML_ARM_SUBSCRIPTION": project.subscription,
            "AZUREML_ARM_RESOURCEGROUP": project.resource_group,
            "AZUREML_ARM_WORKSPACE_NAME": project.workspace,
            "AZUREML_ARM_PROJECT_NAME": job.properties["experimentName"],
            "MLFLOW_TRACKING_URI": self._control.urls["mlflow"],
            "MLFLOW_EXPERIMENT_NAME": job.properties["experimentName"],
            **(job.properties.get("environmentVariables") or {}),
        }

    async def _follow(self, job: Resource, process: asyncio.subprocess.Process, output: Path) -> int:
        """Wait for the process, copying its growing log to storage; end it when the job is cancelled or out of time."""
        limit = (job.properties.get("limits") or {}).get("timeout")
        deadline = asyncio.get_running_loop().time() + (seconds(limit) if limit else float("inf"))
        stored = -1
        try:
            while process.returncode is None:
                try:
                    await asyncio.wait_for(asyncio.shield(process.wait()), LOG_UPLOAD_INTERVAL)
                except TimeoutError:
                    if asyncio.get_running_loop().time() > deadline:
                        raise JobError(f"The job ran longer than its limit of {limit}.") from None
                if output.stat().st_size != stored:
                    stored = output.stat().st_size
                    await self._store_log(job, output)
        finally:
            await processes.stop(process)
            await self._store_log(job, output)
        return process.returncode or 0

    async def _store_log(self, job: Resource, output: Path) -> None:
        location = artifact_location(job.name, "user_logs/std_log.txt")
        await self._control.storage.container(location.container).upload_blob(
            location.path, output.read_bytes(), overwrite=True
        )

    async def _store_outputs(self, job: Resource, folder: Path) -> None:
        for name, value in job.properties["outputs"].items():
            source = folder / "outputs" / name
            target = artifact_location(job.name, "") if name == "default" else self._control.locate(value["uri"])
            await self._control.storage.ensure_container(target.container)
            await self._control.storage.upload(source, target)

    async def _finish(self, id: str, status: str, error: str = "") -> None:
        job = self._job(id)
        if run := job.internal.get("mlflow_run"):
            await end_run(
                self._control.urls["mlflow"],
                run,
                {"Completed": "FINISHED", "Canceled": "KILLED"}.get(status, "FAILED"),
            )
        self._remember(id, error=error, process=None)
        self._set_status(id, status)
        log.info("job name=%s status=%s", job.name, status)

    def _job(self, id: str) -> Resource:
        job = self._control.store.get(id)
        if job is None:
            raise JobError("The job was deleted.")
        return job

    def _remember(self, id: str, **known: object) -> None:
        job = self._job(id)
        job.internal.update(known)
        self._control.store.save(job)

    def _set_status(self, id: str, status: str) -> None:
        job = self._job(id)
        if job.properties["status"] == status:
            return
        job.properties["status"] = status
        times: Json = job.internal.setdefault("times", {})
        times[status] = timestamp()
        self._control.store.save(job)
        if status in ("Running", *FINAL):
            self._control.publish_run_status(job)
