"""Which records are trained on and which are held out."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .lines import Lines

Array = np.ndarray[Any, np.dtype[Any]]

Write = Callable[[bytes], object]
TOGETHER = 1 << 20  # bytes of copies that are written at once
MIXER = np.uint64(0x9E3779B97F4A7C15)


class Split:
    """Sends lines to ``train`` or, a share ``holdout`` of them, to ``held_out``.

    Where a record goes depends on its fingerprint alone, so it stays there when others are added or the file is sorted.
    Of a small file the fingerprints may choose none: until one is held out, the record nearest to the border is kept
    aside, with the number of its copies, and at the end it is the one that is held out.
    """

    def __init__(self, holdout: float, train: Write | None, held_out: Write | None) -> None:
        self._border = np.uint64(min(round(holdout * 2**64), 2**64 - 1))
        self._train, self._held_out = train or _nowhere, held_out or _nowhere
        self._aside: tuple[int, bytes, int] | None = None  # fingerprint, line, copies
        self.trained = self.evaluated = 0
        self.fingerprint = 0  # of all records and where they went, whatever their order

    def is_held_out(self, fingerprints: Array) -> Array:
        """Of each record (uint64 → bool)."""
        chosen: Array = fingerprints < self._border
        return chosen

    def add(self, lines: Lines, fingerprints: Array, kept: Array) -> None:
        """Send those lines on that are ``kept``."""
        chosen = self.is_held_out(fingerprints) & kept
        mixed = (fingerprints[kept] + chosen[kept]) * MIXER
        self.fingerprint = (self.fingerprint + int((mixed ^ (mixed >> np.uint64(32))).sum(dtype=np.uint64))) % 2**64
        trained = kept & ~chosen
        if chosen.any():
            self._return_aside()
        elif self._border and not self.evaluated and trained.any():
            self._put_aside(lines, fingerprints, trained)
        if chosen.any():
            self._held_out(lines.select(chosen))
            self.evaluated += int(chosen.sum())
        if trained.any():
            self._train(lines.select(trained))
            self.trained += int(trained.sum())

    def finish(self) -> None:
        """Nothing more comes."""
        if self._aside and self.trained:
            self.evaluated += self._write_aside(self._held_out)
        self._return_aside()

    def _put_aside(self, lines: Lines, fingerprints: Array, trained: Array) -> None:
        candidates = np.flatnonzero(trained)
        nearest = int(candidates[np.argmin(fingerprints[candidates])])
        fingerprint = int(fingerprints[nearest])
        if self._aside is not None and fingerprint > self._aside[0]:
            return
        if self._aside is None or fingerprint < self._aside[0]:
            self._return_aside()
            alone = np.zeros(len(trained), bool)
            alone[nearest] = True
            self._aside = (fingerprint, lines.select(alone), 0)
        # The same example twice must not be on both sides; its copies differ in the JSON's spacing at most.
        copies = trained & (fingerprints == fingerprints[nearest])
        self._aside = (fingerprint, self._aside[1], self._aside[2] + int(copies.sum()))
        trained &= ~copies

    def _return_aside(self) -> None:
        if self._aside:
            self.trained += self._write_aside(self._train)

    def _write_aside(self, write: Write) -> int:
        if self._aside is None:
            raise AssertionError("nothing is aside")
        _, line, copies = self._aside
        self._aside = None
        at_once = max(1, TOGETHER // len(line))
        for start in range(0, copies, at_once):
            write(line * min(at_once, copies - start))
        return copies


def _nowhere(lines: bytes) -> None:
    """Where records go when only the report is wanted."""
