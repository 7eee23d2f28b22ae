"""Ending programs: what a leader leaves behind ends too, whoever ends it."""

import asyncio
import os
from pathlib import Path

import psutil
import pytest
from host_processes import wait_until

from emulator import processes

# A leader that starts a child which ignores SIGTERM, writes the child's pid, and then does what follows.
CHILD = "bash -c 'trap \"\" TERM; sleep 987 & wait' & echo $! > child; "


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def start(folder: Path, then: str) -> tuple[asyncio.subprocess.Process, int]:
    process = await processes.start(["bash", "-c", CHILD + then], folder, dict(os.environ), folder / "log")
    child = folder / "child"
    await asyncio.to_thread(wait_until, lambda: child.exists() and child.read_text().strip(), "the child")
    return process, int(child.read_text())


async def test_stop_ends_the_children_of_a_leader_that_has_ended(tmp_path: Path) -> None:
    process, child = await start(tmp_path, "true")
    assert await process.wait() == 0
    assert runs(child)
    await processes.stop(process)
    await asyncio.to_thread(wait_until, lambda: not runs(child), "the end of the child")


async def test_stop_kills_although_it_is_broken_off(tmp_path: Path) -> None:
    process, child = await start(tmp_path, "trap '' TERM; while true; do sleep 0.1; done")
    stopping = asyncio.create_task(processes.stop(process))
    await asyncio.sleep(0.1)
    stopping.cancel()
    await asyncio.wait([stopping])
    await asyncio.wait_for(process.wait(), 5)
    await asyncio.to_thread(wait_until, lambda: not runs(child), "the end of the child")


@pytest.mark.parametrize("then", ["true", "sleep 987"], ids=["leader gone", "leader there"])
async def test_leftovers_are_killed_with_their_group(tmp_path: Path, then: str) -> None:
    process, child = await start(tmp_path, then)
    # As an earlier emulator noted it while the leader ran.
    identity = {"pid": process.pid, "started": psutil.Process(child).create_time()}
    if then == "true":
        await process.wait()
    assert await asyncio.to_thread(processes.kill_leftover, identity)
    assert not runs(child)
    assert not processes.kill_leftover(identity)


async def test_a_process_that_got_an_old_number_is_left_alone(tmp_path: Path) -> None:
    process, child = await start(tmp_path, "sleep 987")
    identity = {"pid": process.pid, "started": psutil.Process(process.pid).create_time() - 60}
    assert not processes.kill_leftover(identity)
    assert runs(child)
    await processes.stop(process)
