"""Several processes train as one does, and fail together."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_training

ALIKE: dict[str, Any] = {"epochs": 3, "eval_every": 1, "dropout": False}


@dataclass(frozen=True)
class Two:
    """Two processes, when they have ended."""

    codes: list[int]
    lines: list[list[str]]
    checkpoints: Path

    def told(self, key: str) -> Any:
        """Return what the first process printed under that key."""
        return next(json.loads(line)[key] for line in self.lines[0] if line.startswith(f'{{"{key}"'))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """Two processes, started as Azure ML's PyTorch distribution does, that train, gather, train again and fail."""
    folder = tmp_path_factory.mktemp("checkpoints")
    kept = {"checkpoint_output": str(folder), "checkpoint_minutes": 0}
    work = [
        {**ALIKE, **kept, "batch_size": 2},
        {"gather": ["full", "lora"]},
        {"epochs": 500, "failing_process": "1"},
    ]
    given = json.dumps([each | {"port": free_port()} for each in work])
    place = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, small_training.__file__, given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
        )
        for rank in range(2)
    ]
    try:
        # A process that waits for the other one would wait for twelve hours.
        lines = [process.communicate(timeout=240)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return Two([process.returncode for process in processes], lines, folder)


def test_two_processes_learn_what_one_does(two: Two) -> None:
    _, expected = small_training.run(**ALIKE, batch_size=4)
    trained = two.told("trained")
    assert trained["steps"] == expected["steps"] == 12
    for name in ("curve", "eval_curve"):
        for (step, loss), (same_step, same_loss) in zip(trained[name], expected[name], strict=True):
            assert (step, loss) == (same_step, pytest.approx(same_loss, abs=2e-3)), name


def test_only_the_first_process_speaks_and_each_keeps_its_random_state(two: Two) -> None:
    assert any(line.startswith("progress step=12 steps=12") for line in two.lines[0])
    assert not [line for line in two.lines[1] if line.startswith(("progress", "phase", "warning"))]
    (checkpoint,) = two.checkpoints.iterdir()
    names = {file.name for file in checkpoint.iterdir()}
    assert {"complete.json", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"} <= names


def test_the_first_process_gets_a_sharded_model_back_whole(two: Two) -> None:
    assert two.told("whole") == [True, True]


def test_a_process_that_fails_takes_the_others_with_it(two: Two) -> None:
    assert two.codes == [1, 1]
    assert two.lines[1][-1] == "error: this process was told to fail"
    assert two.lines[0][-1] == "error: process 1 has failed, so process 0 ends; see its log"
