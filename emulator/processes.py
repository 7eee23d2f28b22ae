"""Starting and ending the programs that jobs and deployments are."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

# What a program inherits from the shell that started the local Azure; nothing else, so no secret leaks into a job.
INHERITED = (
    "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "NO_PROXY", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "OMP_NUM_THREADS",
)  # fmt: skip
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def base_environment(python: Path) -> dict[str, str]:
    """The environment of a program that runs in the virtual environment ``python`` (its folder)."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    path = f"{python / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "VIRTUAL_ENV": str(python), "PYTHONUNBUFFERED": "1"}


async def start(
    command: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    log: Path,
    stdin: int = asyncio.subprocess.DEVNULL,
) -> asyncio.subprocess.Process:
    """Start ``command`` as the leader of its own process group, both outputs appended to ``log``."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env=environment,
            stdin=stdin,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )


async def stop(process: asyncio.subprocess.Process, grace: float = GRACE) -> None:
    """End a process group: politely, then, ``grace`` seconds later, not."""
    try:
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), grace)
    finally:
        # The children that outlived their leader, too. While one of them lives, its group's number is given to nobody
        # else; a process that has the leader's number after its end is thus a stranger.
        if process.returncode is None or not psutil.pid_exists(process.pid):
            _signal_group(process.pid, signal.SIGKILL)
    await process.wait()


def identify(pid: int) -> dict[str, float] | None:
    """What tells a process from a later one with the same number: pid and time of start. None when it has ended."""
    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return None


def alive(identity: dict[str, float] | None) -> bool:
    """Whether the process that ``identify`` described still runs."""
    if not identity:
        return False
    try:
        process = psutil.Process(int(identity["pid"]))
        same = abs(process.create_time() - identity["started"]) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def kill_leftover(identity: dict[str, float] | None) -> bool:
    """End a process group that an earlier emulator left behind, its leader dead or not; return whether any ran.

    Returns when they have ended, so that their ports are free.
    """
    members = _group(identity) if identity else []
    if identity and members:
        _signal_group(int(identity["pid"]), signal.SIGKILL)
        deadline = time.monotonic() + GRACE
        while any(map(_runs, members)) and time.monotonic() < deadline:
            time.sleep(0.01)
    return bool(members)


def _group(identity: dict[str, float]) -> list[psutil.Process]:
    """The running processes of the group that ``identity`` led; none when its number belongs to another by now."""
    group, started = int(identity["pid"]), identity["started"] - 1
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if process.pid == group and abs(process.create_time() - identity["started"]) >= 1:
                return []
            if os.getpgid(process.pid) == group and process.create_time() >= started and _runs(process):
                members.append(process)
    return members


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def tail(path: Path, lines: int = 15, limit: int = 16_384) -> str:
    """The last ``lines`` lines of a file, from its last ``limit`` bytes; empty when it is not there."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - limit))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    return ""


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
