"""One measurement of bench/intake.py in a process of its own, so that no other one's memory or caches are in it.

Run as: python -m bench.intake_worker ours|peer|structure|floor FILE, or memory < FILE, or take_in BLOB ETAG SIZE, or
download BLOB; prints one JSON object.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from .measure import rss_samples

CHUNK = 4 * 1024 * 1024
HOLDOUT = 0.1
Json = dict[str, Any]


def ours(chunks: Iterable[bytes]) -> Json:
    """The product's check, fed with chunks; what is written out is counted and dropped."""
    from function_app.dataset.check import check_file
    from function_app.dataset.report import Report

    written = [0]

    def sink(lines: bytes) -> None:
        written[0] += len(lines)

    report = Report()
    check_file(chunks, report, name="data.jsonl", holdout=HOLDOUT, train=sink, held_out=sink)
    return {
        "counts": {code: found.count for code, found in report.counts.items()},
        "records": report.statistics.records,
        "written": written[0],
    }


def peer(lines: Iterable[bytes], thorough: bool) -> Json:
    """The peer's check, line by line."""
    from .intake_peer import Peer

    written = [0]

    def sink(line: bytes) -> None:
        written[0] += len(line)

    result = Peer(HOLDOUT, sink, sink, thorough).check(lines)
    counts = {code: count for code, count in result.counts.items() if count}
    return {"counts": counts, "records": result.records, "written": written[0]}


class Turn(msgspec.Struct):
    """A message, for the parser's floor."""

    role: Literal["system", "user", "assistant"]
    content: str
    weight: Literal[0, 1] | None = None


class Chat(msgspec.Struct):
    """A record, for the parser's floor."""

    messages: list[Turn]


def floor(chunks: Iterable[bytes]) -> Json:
    """msgspec's parser alone, on the same lines into typed records: what no check in Python can be quicker than.

    In blocks of the check's size: in larger ones the records leave the processor's cache, and the parser is slower.
    """
    from function_app.dataset.check import BLOCK

    decode = msgspec.json.Decoder(Chat).decode_lines
    records, rest = 0, b""
    for chunk in chunks:
        whole = rest + chunk
        start, end = 0, whole.rfind(b"\n") + 1
        while start < end:
            stop = whole.rfind(b"\n", start, start + BLOCK) + 1
            records += len(decode(whole[start:stop]))
            start = stop
        rest = whole[end:]
    return {"counts": {}, "records": records + len(decode(rest)), "written": 0}


def measure(kind: str, path: Path) -> Json:
    """The outcome of one kind with its ``seconds`` and ``bytes``; imports are done and the file is in memory before."""
    size = path.stat().st_size
    read, check = WAYS[kind]
    check(read(path, min(size, 100_000)))  # imports, tables and compiled patterns
    content = list(read(path, size))
    started = time.perf_counter()
    outcome = check(content)
    return {**outcome, "seconds": time.perf_counter() - started, "bytes": size}


def chunks_of(path: Path, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes of a file, without the line that they cut."""
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            size -= len(chunk)
            if not size and not chunk.endswith(b"\n"):
                chunk = chunk[: chunk.rfind(b"\n") + 1]
            yield chunk


def lines_of(path: Path, size: int) -> Iterator[bytes]:
    """The whole lines among the first ``size`` bytes of a file."""
    with path.open("rb") as file:
        for line in file:
            size -= len(line)
            if size < 0:
                return
            yield line


WAYS: dict[str, tuple[Callable[[Path, int], Iterable[bytes]], Callable[[Iterable[bytes]], Json]]] = {
    "ours": (chunks_of, ours),
    "floor": (chunks_of, floor),
    "peer": (lines_of, lambda lines: peer(lines, True)),
    "structure": (lines_of, lambda lines: peer(lines, False)),
}


@contextmanager
def peak_memory() -> Iterator[Json]:
    """``idle`` and ``peak`` RSS in bytes, sampled by a thread; the peak is there at the end."""
    with rss_samples(psutil.Process(), 0.02) as samples:
        found = {"idle": samples[0][1], "peak": 0}
        yield found
    found["peak"] = max(rss for _, rss in samples)


def memory() -> Json:
    """The check of what comes by standard input: memory and time, after a check of its first lines for the imports."""
    stream = sys.stdin.buffer
    ours([b"".join(stream.readline() for _ in range(100))])
    size = 0

    def chunks() -> Iterator[bytes]:
        nonlocal size
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            yield chunk

    with peak_memory() as found:
        started = time.perf_counter()
        outcome = ours(chunks())
        seconds = time.perf_counter() - started
    return {**outcome, **found, "seconds": seconds, "bytes": size}


def take_in(blob: str, etag: str, size: int) -> Json:
    """The product's whole intake of a blob, its splits and report written; a small one beside it goes first."""
    from function_app import intake
    from function_app.azure_clients import container
    from function_app.runs import DatasetVersion, new_run, utc_now
    from function_app.settings import settings

    def one(name: str, tag: str, length: int) -> Json:
        run = new_run(name.partition("/")[0], DatasetVersion(name, tag, length, utc_now()), utc_now())
        intake.take_in(run)
        return run.numbers["dataset"]  # type: ignore[no-any-return]

    small = container(settings().datasets_container).get_blob_client("small/data.jsonl").get_blob_properties()
    one("small/data.jsonl", small.etag.strip('"'), small.size)
    with peak_memory() as found:
        started = time.perf_counter()
        numbers = one(blob, etag, size)
        seconds = time.perf_counter() - started
    return {"counts": {}, "records": numbers["records"], **found, "seconds": seconds, "bytes": size}


def download(blob: str) -> Json:
    """What one writes without further thought: read it all, check it, upload both splits."""
    from function_app.azure_clients import container
    from function_app.settings import settings

    from .intake_peer import Peer

    runs = container(settings().runs_container)
    with peak_memory() as found:
        started = time.perf_counter()
        raw = container(settings().datasets_container).get_blob_client(blob).download_blob().readall()
        train: list[bytes] = []
        held_out: list[bytes] = []
        result = Peer(HOLDOUT, train.append, held_out.append).check(raw.splitlines(keepends=True))
        runs.upload_blob("peer/train.jsonl", b"".join(train), overwrite=True)
        runs.upload_blob("peer/eval.jsonl", b"".join(held_out), overwrite=True)
        seconds = time.perf_counter() - started
    return {"counts": {}, "records": result.records, **found, "seconds": seconds, "bytes": len(raw)}


def main() -> None:
    kind, *rest = sys.argv[1:]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    match kind:
        case "memory":
            outcome = memory()
        case "take_in":
            outcome = take_in(rest[0], rest[1], int(rest[2]))
        case "download":
            outcome = download(rest[0])
        case _:
            outcome = measure(kind, Path(rest[0]))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
