"""Examples that come again: exactly, by a fingerprint of their text, or nearly, by MinHash over pieces of it.

Bounded memory: fingerprints are kept for all records up to ``EXACT``, beyond that for a sample that any two equal
records are in or out of together (their count is then an estimate); near-duplicates are looked for among the first
``NEAR``.

MinHash after Broder, "On the resemblance and containment of documents" (1997), with eight permutations. Its pieces are
not all shingles but those that begin at certain bytes (content-defined, as in rsync and winnowing), one in fourteen or
fewer: a whole block of records costs a few passes of numpy. Two records count as near
when at least seven of their eight minima are equal, which for Jaccard similarities of 0.95, 0.8 and 0.5 has the
probabilities 0.94, 0.50 and 0.04.
"""

from array import array
from typing import Any, NamedTuple

import numpy as np

from .block import Block

EXACT = 1 << 19  # fingerprints kept: 12 bytes each
NEAR = 250_000  # records compared: 36 bytes each
PERMUTATIONS, ALIKE = 8, 7
WINDOW = 8  # bytes of a piece: about a word and a half
REACH = 1 << 18  # bytes of a record that are compared: of the letter u alone, each byte would begin a piece
# A piece begins at a byte with these six low bits: in short records u, r, 5, 2, in Cyrillic е and в; in long ones v, 6,
# ж and the like; in scripts with three bytes a character two bytes of 96 for each. So they are found in every language,
# by comparing bytes.
COMMON, RARE = (np.uint8(0x35), np.uint8(0x32)), np.uint8(0x36)
MIN_PIECES = 4  # of a record that is compared; shorter ones are found only when they are equal

Array = np.ndarray[Any, np.dtype[Any]]

# Odd constants of well-known 64-bit mixers (SplitMix64, xxHash, wyhash): any that mix well would do.
_MULTIPLIERS = np.array(
    [
        0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93,
        0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3,
    ],
    np.uint64,
)  # fmt: skip


class Again(NamedTuple):
    """That the record of ``line`` is that of ``first`` again; ``held_out`` when one of them is trained on, one not."""

    line: int
    first: int
    held_out: bool


class Duplicates:
    """Collects records block by block; ``exact`` and ``near`` tell at the end what came again."""

    def __init__(self) -> None:
        self._fingerprints, self._lines = array("Q"), array("I")
        self._sampled = 0  # only fingerprints whose lowest bits, as many as this, are 0 are kept
        self._near: dict[str, array[int]] = {
            "fingerprint": array("Q"), "signature": array("Q"), "first": array("Q"), "second": array("Q"),
            "line": array("I"), "held_out": array("B"),
        }  # fmt: skip
        self._sorted: Array | None = None
        self._thinness: int | None = None
        self.all_compared = True

    def density(self, other: "Duplicates") -> None:
        """Take pieces as densely as ``other`` does, so that the two can be compared."""
        self._thinness = other._thinness

    def add(self, block: Block, fingerprints: Array, lines: Array, held_out: Array) -> None:
        """Add a block's records: of each its fingerprint (uint64), its line, and whether it is held out."""
        kept = fingerprints & np.uint64((1 << self._sampled) - 1) == 0
        self._fingerprints.frombytes(fingerprints[kept].tobytes())
        self._lines.frombytes(lines[kept].astype(np.uint32).tobytes())
        while len(self._fingerprints) > EXACT:
            self._thin_out()
        if len(self._near["line"]) < NEAR:
            self._add_near(block, fingerprints, lines, held_out)
        else:
            self.all_compared = False

    def contains(self, fingerprints: Array) -> Array:
        """Which of them (uint64 → bool) are among the records that were added; to be asked when all are there.

        Of more than EXACT records only those of the sample are known.
        """
        if self._sorted is None:
            self._sorted = np.sort(np.frombuffer(self._fingerprints, np.uint64))
        if not len(self._sorted):
            return np.zeros(len(fingerprints), bool)
        places = np.minimum(np.searchsorted(self._sorted, fingerprints), len(self._sorted) - 1)
        found: Array = self._sorted[places] == fingerprints
        return found

    def exact(self) -> tuple[int, list[Again]]:
        """How many records are an earlier one again, and the first of them; the count is exact if ``exhaustive``."""
        fingerprints = np.frombuffer(self._fingerprints, np.uint64)
        lines = np.frombuffer(self._lines, np.uint32)
        order = np.argsort(fingerprints, kind="stable")
        ordered = fingerprints[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        found = sorted(
            (int(lines[order[place]]), int(lines[order[np.searchsorted(ordered, ordered[place])]]))
            for place in again[np.argsort(lines[order[again]])[:100]]
        )
        return len(again) << self._sampled, [Again(line, first, False) for line, first in found]

    @property
    def exhaustive(self) -> bool:
        return self._sampled == 0

    def near(self, evaluation: "Duplicates | None" = None) -> list[Again]:
        """The records that are nearly an earlier one, by their lines; with ``evaluation``, those that nearly are one of
        its records (``first`` is then a line of the evaluation's file)."""
        columns = {name: np.frombuffer(values, values.typecode) for name, values in self._near.items()}
        if evaluation is not None:
            others = {name: np.frombuffer(values, values.typecode) for name, values in evaluation._near.items()}
            columns = {name: np.concatenate([others[name], columns[name]]) for name in columns}
            columns["held_out"] = np.arange(len(columns["line"])) < len(others["line"])
        pairs: dict[int, int] = {}
        for band in ("first", "second"):
            order = np.argsort(columns[band], kind="stable")
            a, b = order[:-1], order[1:]
            close = columns[band][a] == columns[band][b]
            close &= columns["fingerprint"][a] != columns["fingerprint"][b]
            if evaluation is not None:
                close &= columns["held_out"][a] != columns["held_out"][b]
            a, b = a[close], b[close]
            alike = _equal_bytes(columns["signature"][a], columns["signature"][b]) >= ALIKE
            for first, later in zip(a[alike].tolist(), b[alike].tolist(), strict=True):
                pairs.setdefault(max(first, later), min(first, later))
        lines, sides = columns["line"], columns["held_out"]
        return sorted(
            Again(int(lines[later]), int(lines[first]), bool(sides[later] != sides[first]))
            for later, first in pairs.items()
        )

    def _thin_out(self) -> None:
        self._sampled += 1
        fingerprints = np.frombuffer(self._fingerprints, np.uint64)
        kept = fingerprints & np.uint64((1 << self._sampled) - 1) == 0
        lines = np.frombuffer(self._lines, np.uint32)[kept].tobytes()
        self._fingerprints = array("Q", fingerprints[kept].tobytes())
        self._lines = array("I", lines)

    def _add_near(self, block: Block, fingerprints: Array, lines: Array, held_out: Array) -> None:
        if self._thinness is None:
            length = float((block.ends - block.body_starts).mean())
            self._thinness = 0 if length < 1024 else 1 if length < 12288 else 15
        ends = np.minimum(block.ends, block.body_starts + REACH)
        minima, pieces = sketch(
            memoryview(block.data)[: int(ends[-1]) + WINDOW], block.body_starts, ends, self._thinness
        )
        kept = pieces >= MIN_PIECES
        minima = minima[kept]
        for name, values in (
            ("fingerprint", fingerprints[kept]),
            ("signature", (minima & np.uint64(255)).astype(np.uint8).view(np.uint64).ravel()),
            # Two that differ in one minimum at most are equal in one half, so sorting by halves finds every pair.
            ("first", _combined(minima[:, :4])),
            ("second", _combined(minima[:, 4:])),
            ("line", lines[kept].astype(np.uint32)),
            ("held_out", held_out[kept].astype(np.uint8)),
        ):
            self._near[name].frombytes(values.tobytes())


def sketch(data: bytes | memoryview, starts: Array, ends: Array, thinness: int) -> tuple[Array, Array]:
    """Return the minima of each ``data[start:end]``, (records, 8) uint64, and the number of pieces that they are of.

    ``starts`` and ``ends`` (int64) ascend; ``data`` goes on for at least WINDOW bytes after the last end. With a
    ``thinness`` of 0 about one byte in fourteen begins a piece, else one in a hundred, of which only those count whose
    hash has the other bits of ``thinness`` all zero.
    """
    low = np.frombuffer(data, np.uint8) & np.uint8(0x3F)
    begins = low == RARE if thinness else (low == COMMON[0]) | (low == COMMON[1])
    places = np.flatnonzero(begins[: len(data) - WINDOW])
    windows: Array = np.ndarray((len(data) - WINDOW,), "<u8", data, strides=(1,))
    # One bit of each byte makes letters lower case; what else it merges does no harm.
    hashes = (windows[places] | np.uint64(0x2020202020202020)) * _MULTIPLIERS[0]
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MULTIPLIERS[2]
    hashes ^= hashes >> np.uint64(32)
    if thinness > 1:
        chosen = hashes & np.uint64(thinness & ~1) == 0
        places, hashes = places[chosen], hashes[chosen]
    # Pieces within each record; those in a separator or across an end are in none.
    first, last = np.searchsorted(places, starts), np.searchsorted(places, ends - WINDOW, side="right")
    pieces = np.maximum(last - first, 0)
    taken = np.arange(int(pieces.sum())) + np.repeat(first - (np.cumsum(pieces) - pieces), pieces)
    hashes = hashes[taken]
    rows = np.flatnonzero(pieces)
    begins_at = (np.cumsum(pieces) - pieces)[rows]
    minima = np.full((len(ends), PERMUTATIONS), np.iinfo(np.uint64).max, np.uint64)
    for index, multiplier in enumerate(_MULTIPLIERS if len(rows) else ()):
        permuted = (hashes ^ multiplier) * multiplier
        minima[rows, index] = np.minimum.reduceat(permuted ^ (permuted >> np.uint64(31)), begins_at)
    return minima, pieces


def _combined(minima: Array) -> Array:
    key = np.zeros(len(minima), np.uint64)
    for column in minima.T:
        key = (key ^ column) * _MULTIPLIERS[1]
        key ^= key >> np.uint64(31)
    return key


def _equal_bytes(one: Array, other: Array) -> Array:
    bytes_of_both = (one ^ other).view(np.uint8).reshape(-1, PERMUTATIONS)
    equal: Array = (bytes_of_both == 0).sum(axis=1)
    return equal
