"""What a benchmark returns, and how a table of it is printed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil


@dataclass(frozen=True)
class Measure:
    """One figure. ``ours`` and ``peer`` in ``unit``; ``ratio`` is ours / peer, None where there is no peer.

    ``target`` is the house's aim in words, ``met`` whether this run reached it (None: no aim, only reported).
    """

    measure: str
    unit: str
    ours: float
    peer_name: str = ""
    peer: float | None = None
    target: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.peer else None

    def row(self) -> dict[str, Any]:
        """The object that ``--json`` writes."""
        return {**asdict(self), "ratio": self.ratio}


def table(measures: list[Measure]) -> str:
    """The measures as lines of text."""
    head = ("measure", "ours", "peer", "ratio", "target", "met")
    rows = [head, *(_cells(m) for m in measures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(m: Measure) -> tuple[str, ...]:
    peer = f"{_number(m.peer)} {m.unit} ({m.peer_name})" if m.peer is not None else "–"
    ratio = f"{m.ratio:.2f}x" if m.ratio is not None else "–"
    met = {True: "yes", False: "no", None: "–"}[m.met]
    return m.measure, f"{_number(m.ours)} {m.unit}", peer, ratio, m.target or "–", met


def _number(value: float) -> str:
    """Counts as they are; below ten with two decimals, since some targets are a millisecond or half a second."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


@contextmanager
def rss_samples(process: psutil.Process, seconds: float) -> Iterator[list[tuple[float, int]]]:
    """Samples (time, RSS in bytes) of a process, taken by a thread; the first is there at once, the last at the end."""
    samples = [(time.time(), process.memory_info().rss)]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(seconds):
            samples.append((time.time(), process.memory_info().rss))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
        samples.append((time.time(), process.memory_info().rss))
