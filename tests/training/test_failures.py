"""A failed job ends with one sentence that says what to do, whichever library found out."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from library import FACTS, REPOSITORY, write_records

from training import FineTuneError
from training.failures import disk_for, sentence


def disk_errors() -> list[Exception]:
    import jinja2
    import torch
    from safetensors import SafetensorError

    wrapped = RuntimeError("MLflow could not save the model")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/mnt/model/MLmodel")
    return [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        wrapped,
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        jinja2.exceptions.TemplateError("Not this: my PIN is 1234"),
    ]


def test_every_librarys_full_disk_and_memory_becomes_a_sentence() -> None:
    told = [sentence(error) or "" for error in disk_errors()]
    assert [text.split(";")[0] for text in told] == [
        *(4 * ["the disk is full"]),
        "the disk is full: /mnt/model/MLmodel could not be written",
        "the GPU's memory is too small",
        *(2 * ["the machine's memory is too small"]),
        "the base model's chat template does not accept these conversations, or the recipe's questions",
    ]
    assert sentence(ValueError("something else")) is None
    assert sentence(PermissionError(errno.EACCES, "Permission denied")) is None


def test_another_error_while_writing_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_for("the model", tmp_path, 1):
        raise PermissionError(errno.EACCES, "Permission denied")
    told = r"the report needs about 2\.5 GB in .*, where .* free; use a machine with"
    with pytest.raises(FineTuneError, match=told), disk_for("the report", tmp_path, 2_500_000_000):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_job_that_the_platform_stops_says_so(tmp_path: Path) -> None:
    train = write_records(tmp_path / "t.jsonl", FACTS)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "training.fine_tune", "--train_file", train),
            *("--model_output", tmp_path / "m", "--report_output", tmp_path / "r"),
        ],
        cwd=REPOSITORY,
        env={**os.environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("phase=load")
    process.send_signal(signal.SIGTERM)
    last = process.communicate(timeout=60)[0].splitlines()[-1]
    assert last == (
        "error: the job was stopped (SIGTERM from the platform) before it was done; start it again to finish it"
    )
    assert process.returncode == 1
