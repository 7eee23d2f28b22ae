"""Watches a run from outside, as anyone may: its record and its job's log, both blobs."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient

ENDS = ("live", "rejected", "failed", "cancelled", "superseded", "retired")
POLL = 0.25  # seconds

Json = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """One progress line of the training job (docs/interfaces.md)."""

    step: int
    steps: int
    loss: float
    seconds_left: float


def find_run(storage: BlobServiceClient, model: str, etag: str, limit: float = 60) -> str:
    """The id of the run for the file version ``etag``. Raises TimeoutError when none comes in ``limit`` seconds."""
    runs = storage.get_container_client("runs")
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        for blob in runs.list_blobs(name_starts_with=f"{model}-"):
            if blob.name.count("/") == 0:
                record = json.loads(runs.download_blob(blob.name).readall())
                if record["dataset"]["etag"] == etag.strip('"'):
                    return str(record["id"])
        time.sleep(POLL)
    raise TimeoutError(f"No run has started for the file within {limit:.0f} s.")


def follow(
    storage: BlobServiceClient,
    run_id: str,
    on_stage: Callable[[Json], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    limit: float = 1800,
) -> Json:
    """Call ``on_stage`` for each line of the run's history and ``on_progress`` while it trains; return the record at
    its end. Raises TimeoutError after ``limit`` seconds."""
    shown = 0
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        record: Json = json.loads(storage.get_blob_client("runs", f"{run_id}.json").download_blob().readall())
        for event in record["history"][shown:] if on_stage else ():
            on_stage(event)
        shown = len(record["history"])
        if record["stage"] in ENDS:
            return record
        if on_progress and record["stage"] == "training" and (progress := training_progress(storage, run_id)):
            on_progress(progress)
        time.sleep(POLL)
    raise TimeoutError(f"The run {run_id} has not ended within {limit:.0f} s.")


def training_progress(storage: BlobServiceClient, run_id: str) -> Progress | None:
    """The job's last progress line; None before the first."""
    log = storage.get_blob_client("azureml", f"ExperimentRun/dcid.{run_id}/user_logs/std_log.txt")
    try:
        text = log.download_blob().readall().decode("utf-8", "replace")
    except ResourceNotFoundError:
        return None
    lines = [line for line in text.splitlines() if line.startswith("progress ")]
    if not lines:
        return None
    fields = dict(pair.split("=", 1) for pair in lines[-1].split()[1:])
    return Progress(int(fields["step"]), int(fields["steps"]), float(fields["loss"]), float(fields["eta_seconds"]))
