"""A command job really runs: code and inputs are fetched, a process runs, its log and outputs are stored."""

import asyncio
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from . import processes
from .durations import seconds
from .images import python_for
from .job_status import JobError, artifact_location
from .storage import DATASTORES, Location
from .store import Resource

if TYPE_CHECKING:
    from .jobs import Jobs

LOG_UPLOAD_INTERVAL = 1.0  # seconds; Azure's studio shows a log a few seconds late too


async def execute(jobs: "Jobs", id: str) -> None:
    """Run one command job when its compute has a node for it. Raises JobError, ImageError or UriError."""
    async with jobs.node(jobs.job(id)):
        await CommandRun(jobs, id).run()


class CommandRun:
    """One run of one command job."""

    def __init__(self, jobs: "Jobs", id: str) -> None:
        self._jobs = jobs
        self._control = jobs.control
        self._id = id

    async def run(self) -> None:
        """Fetch, run, store. Raises JobError, ImageError or UriError."""
        id = self._id
        self._jobs.set_status(id, "Preparing")
        job = self._jobs.job(id)
        folder = self._control.home.folder("jobs", job.name)
        shutil.rmtree(folder)
        code = folder / "code"
        code.mkdir(parents=True)
        python = self._python(job)
        if job.properties.get("codeId"):
            await self._control.storage.download(self._code(job), code)
        command = await self._command(job, folder)
        await self._control.storage.ensure_container(DATASTORES["workspaceartifactstore"])
        self._jobs.remember(id, log=True)
        self._jobs.set_status(id, "Running")
        environment = {
            **processes.base_environment(python),
            **self._environment(job),
            "MLFLOW_RUN_ID": job.internal["mlflow_run"],
        }
        output = folder / "std_log.txt"
        process = await processes.start(["bash", "-c", command], code, environment, output)
        self._jobs.remember(id, process=processes.identify(process.pid))
        exit_code = await self._follow(job, process, output)
        if exit_code != 0:
            raise JobError(
                f"The job's command ended with exit code {exit_code}. Last lines of user_logs/std_log.txt:\n"
                + processes.tail(output)
            )
        self._jobs.set_status(id, "Finalizing")
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
