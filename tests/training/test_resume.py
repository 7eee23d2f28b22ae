"""A training that was killed or preempted goes on where it stopped, and ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_training

from training.checkpoints import MARK, Preempted, remove_checkpoints

OPTIONS: dict[str, Any] = {"eval_every": 1, "early_stopping": 9, "epochs": 5}


def same_weights(first: Any, second: Any) -> bool:
    import torch

    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[Any, dict[str, Any]]:
    return small_training.run(**OPTIONS)


def test_a_killed_training_ends_like_one_that_was_not(uninterrupted: Any, tmp_path: Path) -> None:
    given = OPTIONS | {"checkpoint_output": str(tmp_path), "checkpoint_minutes": 0}
    process = subprocess.Popen(
        [sys.executable, small_training.__file__, json.dumps([given])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("progress step=7 "):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    complete = [int(mark.parent.name.partition("-")[2]) for mark in tmp_path.glob(f"checkpoint-*/{MARK}")]
    assert max(complete) >= 6

    model, trained = small_training.run(**given)
    expected_model, expected = uninterrupted
    assert trained["steps"] == expected["steps"] == 20
    assert trained["curve"] == expected["curve"]
    assert trained["eval_curve"] == expected["eval_curve"]
    assert same_weights(model, expected_model)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1  # only the last one is kept
    # Killed after the training, in the evaluation or the export, it has nothing left to train.
    again, told = small_training.run(**given)
    assert (told["curve"], told["eval_curve"]) == (expected["curve"], expected["eval_curve"])
    assert same_weights(again, expected_model)
    remove_checkpoints(small_training.options(**given))
    assert not list(tmp_path.iterdir())


def preempt_at(step: int, accumulated: int = 1) -> Any:
    """A hook that sends this process SIGTERM within a step, as a node's end does."""
    passes = 0

    def before(model: Any, *_: Any) -> None:
        nonlocal passes
        passes += model.training
        if model.training and passes == (step - 1) * accumulated + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return lambda model: model.register_forward_pre_hook(before)


@pytest.mark.parametrize("packing", [False, True])
def test_a_preempted_training_of_adapters_goes_on(tmp_path: Path, packing: bool) -> None:
    given = {"method": "lora", "epochs": 4, "learning_rate": 1e-2, "lora_dropout": 0.1, "packing": packing}
    if packing:
        given |= {"max_length": 128, "batch_size": 1, "gradient_accumulation": 2}
    kept = {"checkpoint_output": str(tmp_path), "checkpoint_minutes": 60}
    expected_model, expected = small_training.run(**given)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"at step 3 of .* it goes on from step 3") as raised:
        small_training.run(preempt_at(3, 2 if packing else 1), **given, **kept)
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    model, trained = small_training.run(**given, **kept)
    assert trained["curve"] == expected["curve"]
    assert same_weights(model, expected_model)
    adapter = trained["adapter_folder"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in adapter.iterdir()}
    shutil.rmtree(adapter)
    shutil.rmtree(expected["adapter_folder"])


def test_only_a_whole_checkpoint_of_the_same_training_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"checkpoint_output": str(tmp_path), "checkpoint_minutes": 60}
    with pytest.raises(Preempted):
        small_training.run(preempt_at(2), **kept)
    good = tmp_path / "checkpoint-2"
    newer = shutil.copytree(good, tmp_path / "checkpoint-3")
    with (newer / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    (shutil.copytree(good, tmp_path / "checkpoint-4") / MARK).unlink()

    capsys.readouterr()
    with pytest.raises(Preempted):
        small_training.run(preempt_at(1), **kept)
    printed = capsys.readouterr().out
    assert "phase=resume ignored=checkpoint-4 because=incomplete" in printed
    assert "phase=resume ignored=checkpoint-3 because=incomplete" in printed
    assert "phase=resume from_step=2" in printed
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-3"]

    with pytest.raises(Preempted, match="at step 1 "):
        small_training.run(preempt_at(1), **kept, learning_rate=1e-3)
    assert "phase=resume ignored=checkpoint-3 because=other_recipe_data_or_processes" in capsys.readouterr().out


def test_a_full_disk_costs_checkpoints_not_the_training(
    uninterrupted: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    _, trained = small_training.run(**OPTIONS, checkpoint_output=str(tmp_path), checkpoint_minutes=0)
    assert trained["curve"] == uninterrupted[1]["curve"]
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "the checkpoint at step 1 could not be written ([Errno 28] No space left on device)" in warnings[0]
    assert not list(tmp_path.iterdir())
