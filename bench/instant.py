"""What the benches `load` and `latency` share: a local Azure with a training of milliseconds, and the app measured from
outside (bench/probe/sitecustomize.py): how long each `advance` took, and which requests it sent."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.watch import ENDS
from tests import instant
from tests.local_azure import LocalAzure, local_azure

PROBE = Path(__file__).with_name("probe")
STORAGE = ("blob read", "blob write", "blob list", "queue")  # kinds of the probe that are requests to storage
# Bytecode makes imports several times faster, and every installation has it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
Json = dict[str, Any]


@dataclass(frozen=True)
class Invocation:
    """One `advance`: of which run, when it began, its seconds and processor seconds, and its requests by kind."""

    run: str
    at: float
    seconds: float
    cpu: float
    calls: Counter[str]

    @property
    def storage_calls(self) -> int:
        return sum(self.calls[kind] for kind in STORAGE)


class Measured:
    """A running local Azure and what its app has done so far."""

    def __init__(self, azure: LocalAzure, lines: Path) -> None:
        self.azure = azure
        self._lines = lines

    def invocations(self) -> list[Invocation]:
        found = [json.loads(line) for line in self._lines.read_text(encoding="utf-8").splitlines()]
        return [
            Invocation(each["run"], each["at"], each["seconds"], each["cpu"], Counter(each["calls"])) for each in found
        ]

    def stages(self, prefix: str = "") -> dict[str, tuple[str, bool]]:
        """By run: its stage, and whether it has ended and nothing is left to do."""
        runs = self.azure.storage.get_container_client("runs")
        found = {}
        for blob in runs.walk_blobs(prefix, include=["metadata"]):  # without the splits below
            known = getattr(blob, "metadata", None)
            if known and "stage" in known:
                settled = known["stage"] in ENDS and "unsettled" not in known
                found[blob.name.removesuffix(".json")] = (known["stage"], settled)
        return found

    def record(self, run_id: str) -> Json:
        runs = self.azure.storage.get_container_client("runs")
        record: Json = json.loads(runs.download_blob(f"{run_id}.json").readall())
        return record


@contextmanager
def measured_azure(**changed: Any) -> Iterator[Measured]:
    """A local Azure in a folder of its own; ``changed``: keys of emulator.yaml."""
    home = Path(tempfile.mkdtemp(prefix="bench-instant-"))
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "BENCH_PROBE")}
    try:
        os.environ |= {"PYTHONPATH": str(PROBE), "BENCH_PROBE": str(home / "probe.jsonl")}
        project = instant.project(home / "project", functions=True, **changed)
        with local_azure(home / "azure", project=project) as azure:
            yield Measured(azure, home / "probe.jsonl")
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        if os.environ.get("BENCH_KEEP"):
            print(f"kept: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
