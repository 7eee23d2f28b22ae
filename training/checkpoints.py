"""Checkpoints of a training: written by the clock and when the platform takes the machine away, resumed from, removed.

They lie in ``checkpoint_output``, an output of the job that the platform keeps when it starts the job again. It is a
mount of blob storage, where renaming a folder copies it; so a checkpoint is good not by its name but by a file that is
written last and names all others with their sizes. What lacks it, or does not fit it, is never resumed from.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training import FineTuneError, distributed
from training.arguments import FineTuneArguments
from training.phases import is_first

if TYPE_CHECKING:
    from datasets import Dataset

MARK = "complete.json"
ROWS_HASHED = 4096  # of the training data, evenly spread: hashing all of a large set would take longer than resuming
# What two runs may differ in and still train the same model.
NO_MATTER = (
    *("train_file", "eval_file", "model_output", "report_output", "base_path", "champion_path", "checkpoint_output"),
    *("questions", "eval_samples", "eval_max_new_tokens", "checkpoint_minutes"),
)


class Preempted(FineTuneError):
    """The platform asked the job to stop; it goes on from its checkpoint when it is started again."""

    exit_code = 128 + signal.SIGTERM  # what a shell reports for a process that SIGTERM ended


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, and what was noted with it."""

    folder: Path
    step: int
    notes: dict[str, Any]


def fingerprint(arguments: FineTuneArguments, dataset: "Dataset") -> str:
    """Return what tells this training from another one: its options, its tokens, the number of processes."""
    options = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in NO_MATTER}
    hashed = hashlib.sha256(json.dumps([options, len(dataset), distributed.world_size()], sort_keys=True).encode())
    chosen = dataset.select(range(0, len(dataset), max(1, len(dataset) // ROWS_HASHED)))
    for row in chosen.select_columns(["input_ids", "labels"]):
        hashed.update(repr((list(row["input_ids"]), list(row["labels"]))).encode())
    return hashed.hexdigest()


def remove_checkpoints(arguments: FineTuneArguments) -> None:
    """Delete what ``checkpoint_output`` holds, when the job has succeeded: storage costs money every month."""
    if arguments.checkpoint_output and is_first():
        for folder in Path(arguments.checkpoint_output).glob("checkpoint-*"):
            shutil.rmtree(folder, ignore_errors=True)


class Checkpoints(TrainerCallback):
    """When to write a checkpoint, and writing it. ``folder`` None: never."""

    def __init__(self, folder: Path | None, minutes: float, fingerprint: str) -> None:
        self.folder = folder
        self.preempted = False  # agreed on by all processes
        self.last_step = 0  # of the last good checkpoint
        self._asked = False  # of this process alone
        self._seconds = 60 * minutes
        self._fingerprint = fingerprint
        self._due = time.monotonic() + self._seconds
        self._warned = False

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint of this training, and say what else lies there; None: begin anew."""
        found: Checkpoint | None = distributed.from_first(self._newest() if is_first() else None)
        self.last_step = found.step if found else 0
        return found

    def _newest(self) -> Checkpoint | None:
        if self.folder is None or not self.folder.is_dir():
            return None
        for folder in sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True):
            notes = _complete(folder)
            if notes is None:
                print(f"phase=resume ignored={folder.name} because=incomplete", flush=True)
            elif notes["fingerprint"] != self._fingerprint:
                print(f"phase=resume ignored={folder.name} because=other_recipe_data_or_processes", flush=True)
            else:
                print(f"phase=resume from_step={notes['step']}", flush=True)
                return Checkpoint(folder, notes["step"], notes)
        return None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._due = time.monotonic() + self._seconds

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 the trainer passes it by position
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        if self.folder is None:
            return
        # The first process's clock counts, and a notice to any of them: all must write at the same step.
        due, asked = distributed.agree(is_first() and time.monotonic() >= self._due, self._asked)
        if control.should_training_stop and state.global_step < state.max_steps:
            return  # stopped early, for good: a checkpoint from here would train on
        if due or asked:
            control.should_save = True
        if asked and state.global_step < state.max_steps:
            self.preempted = True
            control.should_training_stop = True

    def listen(self) -> Callable[[], None]:
        """Take SIGTERM, by which a platform announces that it takes the machine away; return what undoes it."""
        if self.folder is None or threading.current_thread() is not threading.main_thread():
            return lambda: None

        def note(*_: Any) -> None:
            self._asked = True
            signal.signal(signal.SIGTERM, before)  # who asks twice means it

        before = signal.signal(signal.SIGTERM, note)

        def undo() -> None:
            signal.signal(signal.SIGTERM, before)

        return undo

    def write(self, step: int, save: Callable[[], None], notes: dict[str, Any]) -> None:
        """Write a checkpoint with ``save``, mark it complete, delete the others.

        ``save`` writes into ``folder/checkpoint-<step>``. A disk that is full costs the checkpoint, not the training.
        """
        if self.folder is None:
            raise ValueError("there is no folder for checkpoints")
        folder = self.folder / f"checkpoint-{step}"
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)  # an incomplete one, from before the job was stopped
        distributed.agree(False)  # nobody writes before that
        try:
            save()
            failure = ""
        except torch.OutOfMemoryError:
            raise
        # torch.save tells of a full disk by a RuntimeError.
        except (OSError, RuntimeError, SafetensorError) as error:
            failure = " ".join(str(error).split())[:200]
        failed = distributed.agree(bool(failure))[0]
        if is_first():
            if not failed:
                failure = self._mark(folder, step, notes)
            if failure or failed:
                self._give_up(folder, failure)
            else:
                for other in self.folder.glob("checkpoint-*"):
                    if other != folder:
                        shutil.rmtree(other, ignore_errors=True)
        self._due = time.monotonic() + self._seconds
        if not distributed.agree(bool(failure))[0]:
            self.last_step = step

    def _mark(self, folder: Path, step: int, notes: dict[str, Any]) -> str:
        """Return why the checkpoint could not be marked complete; empty when it is."""
        try:
            files = {str(file.relative_to(folder)): file.stat().st_size for file in _files(folder)}
            known = {"fingerprint": self._fingerprint, "step": step, "files": files}
            with (folder / MARK).open("w", encoding="utf-8") as mark:
                json.dump(notes | known, mark)
                mark.flush()
                os.fsync(mark.fileno())
        except OSError as error:
            return str(error)
        return ""

    def _give_up(self, folder: Path, failure: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if not self._warned:
            self._warned = True
            print(
                f"warning: the checkpoint at step {_step(folder)} could not be written "
                f"({failure or 'by another process'}); training goes on without it",
                flush=True,
            )


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and file.name != MARK]


def _complete(folder: Path) -> dict[str, Any] | None:
    """Return the notes of a checkpoint all of whose files are there in full size, else None."""
    try:
        notes: dict[str, Any] = json.loads((folder / MARK).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in notes["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return notes if whole else None
