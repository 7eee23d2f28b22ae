"""One local Azure for many schedules, and one schedule played in it and judged."""

import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from emulator.config import Home, load_project
from emulator.environment import app_environment
from function_app.engines import command
from tests.instant import project
from tests.local_azure import forget_clients, local_azure

from .harness import Broken, Play
from .invariants import violations
from .schedule import Schedule, draw

TRAINING = Path(__file__).resolve().parents[2] / "training"


@dataclass(frozen=True)
class LocalWorld:
    """Where the schedules are played."""

    home: Path
    workspace_id: str


@dataclass(frozen=True)
class Played:
    """What came of a schedule."""

    schedule: Schedule
    violations: list[str]
    trace: list[str]
    invocations: int


@contextmanager
def local_world() -> Iterator[LocalWorld]:
    """A local Azure with the jobs and servers of tests/instant, and this process as its function app."""
    folder = Path(tempfile.mkdtemp(prefix="chaos "))
    try:
        path = project(folder)
        with local_azure(folder / "home", project=path):
            home = Home(load_project(path), folder / "home")
            state = home.load()
            assert state is not None
            with (
                patch.dict(os.environ, app_environment(home, state)),
                # Each job fetches the code, of which the instant one needs nothing.
                patch.object(command, "CODE", _small_code(folder)),
            ):
                forget_clients()
                logging.getLogger("azure").setLevel(logging.ERROR)  # a failing schedule's trace says more
                yield LocalWorld(home.path, home.project.workspace_id)
    finally:
        forget_clients()
        shutil.rmtree(folder, ignore_errors=True)


def play(seed: int, world: LocalWorld, schedule: Schedule | None = None) -> Played:
    """Play the schedule of a seed, and judge it."""
    schedule = schedule or draw(seed)
    playing = Play(schedule, world.home, world.workspace_id)
    found: list[str] = []
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # azure-ai-ml's dots and bars
            playing.play()
    except Broken as error:
        found.append(str(error))
    else:
        with playing.containers():
            found = violations(playing)
    return Played(schedule, found, playing.trace, playing.invocations)


def _small_code(folder: Path) -> Path:
    code = folder / "training"
    code.mkdir()
    shutil.copy(TRAINING / "conda.yml", code)
    return code
