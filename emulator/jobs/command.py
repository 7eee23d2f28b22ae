"""A command job really runs: code and inputs are fetched, its processes run, its logs and outputs are stored."""

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .. import processes
from ..durations import seconds
from ..images import python_for
from ..storage import DATASTORES, Location
from .distribution import job_environment, processes_of
from .inputs import fetch_inputs
from .logs import JobLogs, log_names
from .outputs import JobOutputs, forget
from .placeholders import fill_in, path_word
from .status import JobError, JobTimeout

if TYPE_CHECKING:
    from .jobs import Jobs

# A process waits for a line on its input before it becomes the command. It comes once the process is known to the
# store; when this program is killed in between, the input ends, and so does the process: no job ever runs twice.
GATE = 'read -r && exec bash -c "$0" </dev/null'


async def execute(jobs: "Jobs", id: str) -> None:
    """Run one command job when its compute has nodes for it. Raises JobError, JobTimeout, ImageError or UriError."""
    async with jobs.node(jobs.job(id)):
        await CommandRun(jobs, id).run()


class CommandRun:
    """One run of one command job. A job that was preempted or whose emulator was killed has several."""

    def __init__(self, jobs: "Jobs", id: str) -> None:
        self._jobs = jobs
        self._control = jobs.control
        self._job = jobs.job(id)
        self._folder = self._control.home.folder("jobs", self._job.name)
        self._code = self._folder / "code"
        self._outputs = JobOutputs(self._control, self._job, self._folder / "outputs")
        self._processes: list[asyncio.subprocess.Process] = []

    async def run(self) -> None:
        """Fetch, run, store. Raises JobError, JobTimeout, ImageError or UriError."""
        id = self._job.id
        if not self._job.internal.get("succeeded"):  # it did, when this is the next emulator, which stores the rest
            self._jobs.set_status(id, "Preparing")
            command, environment, python = await self._prepare()
            try:
                await self._execute(command, {**processes.base_environment(python), **environment})
            except BaseException as error:
                if error.args != ("shutdown",):  # then the next emulator goes on with the local folders
                    await self._outputs.store(self._code)
                raise
            self._jobs.remember(id, succeeded=True)
        self._jobs.set_status(id, "Finalizing")
        await self._outputs.store(self._code)
        assets = self._jobs.job(id).internal.get("registered") or self._outputs.assets()
        self._jobs.remember(id, registered=assets)  # before: who is stopped here makes no second version
        self._outputs.register(assets)

    async def _prepare(self) -> tuple[str, dict[str, str], Path]:
        """The job's command, its variables and its Python environment, with all that they name in place."""
        job = self._job
        await forget(self._code)
        await forget(self._folder / "inputs")
        self._code.mkdir(parents=True)
        python = self._python()
        if job.properties.get("codeId"):
            await self._control.storage.download(self._code_location(), self._code)
        inputs = await fetch_inputs(self._control, job, self._folder / "inputs")
        outputs = await self._outputs.prepare(self._code)
        literal = {name for name, given in job.properties["inputs"].items() if given["jobInputType"] == "literal"}
        values = {f"inputs.{name}": v if name in literal else path_word(v) for name, v in inputs.items()}
        values |= {f"outputs.{name}": path_word(value) for name, value in outputs.items()}
        command = fill_in(job.properties["command"], values)
        return command, job_environment(self._control, job, {"inputs": inputs, "outputs": outputs}), python

    def _python(self) -> Path:
        id = self._job.properties["environmentId"]
        environment = self._control.store.get(id)
        if environment is None and id.startswith("/"):
            raise JobError("The job's environment was deleted.")
        known = environment.properties if environment else {"image": id}  # a curated one is its own image here
        build = known.get("build") or {}
        return python_for(self._control.home.project, known.get("image") or f"build:{build.get('contextUri', '')}")

    def _code_location(self) -> Location:
        code = self._control.store.get(self._job.properties["codeId"])
        if code is None:
            raise JobError("The job's code was deleted.")
        return self._control.storage.locate(code.properties["codeUri"])

    async def _execute(self, command: str, environment: dict[str, str]) -> None:
        """Run the job's processes to their end. Raises JobError when one fails, JobTimeout when they take too long."""
        planned = processes_of(self._job)
        names = log_names(len(planned))
        await self._control.storage.ensure_container(DATASTORES["workspaceartifactstore"])
        files = [self._folder / name for name in names]
        logs = JobLogs(self._control.storage, self._job.name, files)
        self._jobs.remember(self._job.id, logs=names)
        ended, copying = asyncio.Event(), None
        try:
            folders = [await self._node_folder(node) for node in range(planned[-1].node + 1)]
            for process, file in zip(planned, files, strict=True):
                await self._start(command, folders[process.node], {**environment, **process.environment}, file)
            self._open_gates()
            self._jobs.set_status(self._job.id, "Running")
            copying = asyncio.create_task(logs.follow(ended))
            await self._wait(files)
        finally:
            await asyncio.gather(*(processes.stop(process) for process in self._processes))
            if copying:
                ended.set()
                await asyncio.wait([copying])
            await logs.copy()

    async def _node_folder(self, node: int) -> Path:
        """The working directory of a node: each has the code for itself, as on machines of its own."""
        if node == 0:
            return self._code
        folder = self._folder / f"code_{node}"
        await forget(folder)
        await asyncio.to_thread(shutil.copytree, self._code, folder, symlinks=True)
        return folder

    async def _start(self, command: str, folder: Path, environment: dict[str, str], log: Path) -> None:
        process = await processes.start(
            ["bash", "-c", GATE, command], folder, environment, log, stdin=asyncio.subprocess.PIPE
        )
        self._processes.append(process)
        known = [processes.identify(process.pid) for process in self._processes]
        self._jobs.remember(self._job.id, processes=[identity for identity in known if identity])

    def _open_gates(self) -> None:
        for process in self._processes:
            assert process.stdin is not None  # noqa: S101 - it was started with a pipe
            process.stdin.write(b"\n")
            process.stdin.close()

    async def _wait(self, files: list[Path]) -> None:
        """Until all processes have ended well. Raises JobError with the first that fails, and JobTimeout."""
        limit = (self._job.properties.get("limits") or {}).get("timeout")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (seconds(limit) if limit else float("inf"))
        waits = {
            asyncio.create_task(process.wait()): file for process, file in zip(self._processes, files, strict=True)
        }
        pending = set(waits)
        try:
            while pending:
                left = deadline - loop.time() if limit else None
                done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise JobTimeout(f"The job ran longer than its limit of {limit} and was canceled.")
                for ended in done:
                    if ended.result() != 0:
                        raise JobError(_failure(ended.result(), waits[ended]))
        finally:
            for wait in waits:
                wait.cancel()


def _failure(status: int, log: Path) -> str:
    """What the service says of a process that failed."""
    return (
        f"Execution failed. User process 'bash' exited with status code {status}. Please check log file"
        f" 'user_logs/{log.name}' for error details. Error: {processes.tail(log)}"
    )
