"""The intake: how fast files are checked, against `json` and pydantic, and in how much memory.

Files are 200 MB of real chats (bench/intake_data.py), read into memory before; every rate is the median of five
processes, which do nothing else. The peer reads the first 20 MB of the same file: its rate does not depend on the
length. The floor is msgspec's parser alone, into typed records, on the same bytes.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from function_app.dataset.codes import CODES
from function_app.dataset.report import Severity
from tests.local_azure import LocalAzure, local_azure

from . import intake_data, intake_worker
from .measure import Measure

ROOT = Path(__file__).resolve().parents[1]
SIZE = 200_000_000  # bytes, of each file
PEER_SIZE = 20_000_000  # of it for the peer
STREAM = 2_000_000_000  # bytes that are checked in one go, for the memory
BLOB = 2_000_000_000  # bytes of the blob that is taken in from Azurite
TIMES = 5
RATIO_TARGET, RATE_TARGET, MEMORY_TARGET = 3.0, 250.0, 64.0  # times, MB/s, MB (MiB would be more lenient)
PEER, STRUCTURE, READALL = "json + pydantic", "the same, structure rules only", "readall + the peer"
# What each kind of file is called, and whether the rate has a target of its own.
FILES = {
    "chats": ("500-byte records", False),
    "verbatim": ("500-byte records, 99 % duplicates", False),
    "long": ("5 KB records", True),
}
Json = dict[str, Any]


def run() -> list[Measure]:
    """Write the files, check that both sides find the same, then measure."""
    folder = Path(tempfile.mkdtemp(prefix="bench-intake-"))
    try:
        compare_findings()
        measures = [row for kind in FILES for row in _rates(folder, kind)]
        return [*measures, *_memory(), *_from_azurite(folder)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spoiled(lines: list[bytes]) -> list[bytes]:
    """``lines`` of good chats with one mistake of each kind; a mistake costs a record and is found once."""
    broken: list[bytes] = [
        b"{broken",
        lines[0][: len(lines[0]) // 2],
        b'{"messages": [{"role": "user", "content": "Caf\xe9?"}, {"role": "assistant", "content": "Yes."}]}',
        b"[1, 2]",
        b'{"messages": "Hello"}',
        b'{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "Yes."}]}',
        b'{"messages": [{"role": "user"}, {"role": "assistant", "content": "Yes."}]}',
        b'{"messages": [{"role": "robot", "content": "Well?"}, {"role": "assistant", "content": "Yes."}]}',
        b'{"messages": [{"role": "user", "content": " \\n"}, {"role": "assistant", "content": "Yes."}]}',
        b'{"messages": [{"role": "user", "content": "Well?"}]}',
        b'{"messages": [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes.", "weight": 0}]}',
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},'
        b' {"role": "user", "content": "c"}]}',
        b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"},'
        b' {"role": "assistant", "content": "c"}]}',
        b'{"prompt": "a", "completion": "b"}',
        b'{"instruction": "a", "output": "b"}',
    ]
    good = [line.rstrip(b"\n") for line in lines]
    return [*good[:7], *broken, *good[7:], *good[:3], b"", good[0].replace(b"}]}", b'}], "task": 1}')]


def compare_findings() -> None:
    """Both sides count the same errors, in a good file and in a spoiled one. Raises AssertionError."""
    lines = intake_data.source().read_bytes().splitlines()[:400]
    for name, content in (("good", lines), ("spoiled", spoiled(lines))):
        file = b"\n".join(content) + b"\n"
        ours, peer = intake_worker.ours([file]), intake_worker.peer(file.splitlines(keepends=True), thorough=True)
        assert errors(ours) == errors(peer), f"{name}: ours {errors(ours)}, the peer's {errors(peer)}"
        assert ours["records"] == peer["records"], name


def errors(outcome: Json) -> dict[str, int]:
    """The counts of the codes that are errors."""
    return {code: count for code, count in outcome["counts"].items() if CODES[code][0] is Severity.ERROR}


def worker(*arguments: str, **options: Any) -> Json:
    """The outcome of one process of bench/intake_worker.py. Raises CalledProcessError."""
    command = [sys.executable, "-m", "bench.intake_worker", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, **options)
    outcome: Json = json.loads(done.stdout)
    return outcome


def _rates(folder: Path, kind: str) -> list[Measure]:
    """MB/s of the check of one kind of file, of the peer, and of the parser alone."""
    name, has_target = FILES[kind]
    whole = intake_data.write(folder / f"{kind}.jsonl", SIZE, intake_data.KINDS[kind]())
    share = intake_data.write(folder / f"{kind}-share.jsonl", PEER_SIZE, intake_data.KINDS[kind]())
    ours, floor = (_rate(way, whole) for way in ("ours", "floor"))
    peer, structure = (_rate(way, share) for way in ("peer", "structure"))
    on_share = [worker(way, str(share)) for way in ("ours", "peer")]
    assert errors(on_share[0]) == errors(on_share[1]) == {}
    found = [outcome["counts"].get("near_duplicate", 0) for outcome in on_share]
    for path in (whole, share):
        path.unlink()
    target, met = f"≥ {RATIO_TARGET:.0f}x", ours >= RATIO_TARGET * peer
    if has_target:
        target, met = f"{target}, ≥ {RATE_TARGET:.0f} MB/s", met and ours >= RATE_TARGET
    return [
        Measure(f"{name}: checked", "MB/s", ours, PEER, peer, target, met),
        Measure("  against fewer rules of the peer's", "MB/s", ours, STRUCTURE, structure),
        Measure("  the parser's floor (msgspec alone)", "MB/s", floor),
        Measure("  the floor's share of our time", "%", 100 * ours / floor),
        Measure(f"  near-duplicates found in {PEER_SIZE // 10**6} MB", "records", found[0], PEER, found[1]),
    ]


def _rate(way: str, path: Path) -> float:
    """MB/s, the median of several processes."""
    outcomes = [worker(way, str(path)) for _ in range(TIMES)]
    return float(statistics.median(outcome["bytes"] / outcome["seconds"] / 1e6 for outcome in outcomes))


def _memory() -> list[Measure]:
    """The memory of a check of a stream that is on no disk: another process makes it up as it goes."""
    rows = []
    for kind in ("chats", "long"):
        command = [sys.executable, "-m", "bench.intake_data", kind, str(STREAM)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as stream:
            outcome = worker("memory", stdin=stream.stdout)
        assert STREAM - outcome["bytes"] < 1_000_000, "the stream has ended early"
        name = f"{STREAM / 1e9:.0f} GB of {FILES[kind][0]}, peak above idle"
        rows.append(_memory_row(name, outcome))
    return rows


def _memory_row(name: str, outcome: Json) -> Measure:
    megabytes = (outcome["peak"] - outcome["idle"]) / 1e6
    return Measure(name, "MB", megabytes, target=f"≤ {MEMORY_TARGET:.0f} MB", met=megabytes <= MEMORY_TARGET)


def _from_azurite(folder: Path) -> list[Measure]:
    """A blob from Azurite through the whole intake, its splits and report written back."""
    with local_azure(folder / "azure") as azure:
        # Containers that no event subscription watches: the function app must not take the same files in beside us.
        names = {f"{name.upper()}_CONTAINER": f"{name}-bench" for name in ("datasets", "runs", "reports")}
        # As the function app runs: with the app setting of docs/settings.md.
        environment = {**os.environ, **names, "MALLOC_ARENA_MAX": "2"}
        for container in names.values():
            azure.storage.create_container(container)
        datasets = names["DATASETS_CONTAINER"]
        _upload(azure, datasets, "small/data.jsonl", 100_000)
        etag = _upload(azure, datasets, "large/data.jsonl", BLOB)
        ours = worker("take_in", "large/data.jsonl", etag, str(BLOB), env=environment)
        _upload(azure, datasets, "share/data.jsonl", PEER_SIZE)
        peer = worker("download", "share/data.jsonl", env=environment)
        rates = [outcome["bytes"] / outcome["seconds"] / 1e6 for outcome in (ours, peer)]
    size = f"{BLOB / 1e9:g} GB"
    return [
        Measure(f"{size} blob from Azurite to splits and report", "MB/s", rates[0], READALL, rates[1]),
        _memory_row("  peak above idle", ours),
    ]


def _upload(azure: LocalAzure, container: str, name: str, size: int) -> str:
    """A blob of ``size`` bytes of chats, made as it is sent; returns its ETag."""

    def stream() -> Iterator[bytes]:
        yield from intake_data.up_to(size, intake_data.chats())

    client = azure.storage.get_blob_client(container, name)
    sent = client.upload_blob(stream(), overwrite=True, max_concurrency=2)
    return str(sent["etag"]).strip('"')
