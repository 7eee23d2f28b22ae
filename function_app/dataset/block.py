"""The text of a block's records as one piece of bytes, and where in it each record lies."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from .tally import estimated_tokens

Array = np.ndarray[Any, np.dtype[Any]]

SEPARATOR = "\x1e"  # ASCII's record separator, between messages: no pattern of sensitive.py contains it
PADDING = b"\0" * 8  # duplicates.py reads eight bytes at once


class Block:
    """The ``contents`` of all messages, joined, and of each record the roles in ``orders``.

    ``data`` ends with PADDING, after ``size`` bytes of text. Arrays have one int64 for each record: ``starts`` and
    ``ends``, places in ``data``, enclose its messages, ``body_starts`` leaves a system message out.
    """

    def __init__(self, contents: list[str], orders: Sequence[tuple[str, ...]]) -> None:
        text = SEPARATOR.join(contents)
        self.is_ascii = text.isascii()
        characters = np.fromiter(map(len, contents), np.int64, len(contents))
        if self.is_ascii:
            data, lengths = text.encode(), characters
        else:
            parts = [content.encode() for content in contents]
            data = SEPARATOR.encode().join(parts)
            lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        self.size = len(data)
        self.data = data + PADDING
        self.contents, self.turns = contents, list(map(len, orders))
        self.messages = np.array(self.turns, np.int64)
        self.system = np.array([order[0] == "system" for order in orders], bool)
        last = np.cumsum(self.messages) - 1
        self._first = last - self.messages + 1
        message_ends = np.cumsum(lengths + 1) - 1
        message_starts = message_ends - lengths
        self.starts, self.ends = message_starts[self._first], message_ends[last]
        self.body_starts = message_starts[self._first + self.system]
        self.characters: Array = np.add.reduceat(characters, self._first)
        self.bytes: Array = np.add.reduceat(lengths, self._first)

    @cached_property
    def fingerprints(self) -> Array:
        """uint64 of each record's text. The same whatever the JSON looks like, in every process and version."""
        view, digest = memoryview(self.data), xxhash.xxh3_64_intdigest
        bounds = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        return np.fromiter((digest(view[start:end]) for start, end in bounds), np.uint64, len(self.starts))

    @cached_property
    def estimated_tokens(self) -> Array:
        return estimated_tokens(self.bytes, self.characters, self.messages)

    def contents_of(self, record: int) -> list[str]:
        first = int(self._first[record])
        return self.contents[first : first + self.turns[record]]

    def record_at(self, place: int) -> int:
        """The record that the byte at ``place`` belongs to."""
        return int(np.searchsorted(self.ends, place, side="right"))
