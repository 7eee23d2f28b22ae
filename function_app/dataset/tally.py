"""Statistics of records, block by block, in constant memory."""

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .report import Percentiles, Statistics

if TYPE_CHECKING:
    from .block import Block

Array = np.ndarray[Any, np.dtype[Any]]

TOGETHER = 16  # blocks
SAMPLE = 64 * 1024  # bytes
MAX_TURNS = 100  # messages in a record that are told apart; those with more are counted together
MESSAGE_TOKENS = 4  # what a chat template puts around a message: a role's token, a line break, an end, a line break

# First and last code points of writing scripts' letters, from Unicode's Blocks.txt; coarse, for a share in a report.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F),
              (0x250, 0x2AF), (0x1E00, 0x1EFF), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Armenian": ((0x531, 0x58F),),
    "Hebrew": ((0x591, 0x5FF), (0xFB1D, 0xFB4F)),
    "Arabic": ((0x610, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)),
    "Devanagari": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
    "Bengali": ((0x980, 0x9FF),),
    "Gurmukhi": ((0xA00, 0xA7F),),
    "Gujarati": ((0xA80, 0xAFF),),
    "Tamil": ((0xB80, 0xBFF),),
    "Telugu": ((0xC00, 0xC7F),),
    "Kannada": ((0xC80, 0xCFF),),
    "Malayalam": ((0xD00, 0xD7F),),
    "Sinhala": ((0xD80, 0xDFF),),
    "Thai": ((0xE00, 0xE7F),),
    "Lao": ((0xE80, 0xEFF),),
    "Tibetan": ((0xF00, 0xFFF),),
    "Myanmar": ((0x1000, 0x109F),),
    "Georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
    "Ethiopic": ((0x1200, 0x139F), (0x2D80, 0x2DDF)),
    "Khmer": ((0x1780, 0x17FF),),
    "Mongolian": ((0x1800, 0x18AF),),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "Kana": ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "Han": ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
            (0x20000, 0x323AF)),
}  # fmt: skip


class Tally:
    """Counts what comes by, and fills a Statistics with it at the end."""

    def __init__(self) -> None:
        self.records = self.messages = self.characters = self.with_system = 0
        self.tokens = 0
        self.tokens_exact = True
        self._turns: Counter[int] = Counter()
        self._lengths, self._token_counts = Lengths(), Lengths()
        self._letters = np.zeros(len(SCRIPTS) + 1, np.int64)  # by the number of the script; 0: no letter of any

    def add(self, block: "Block", tokens: Array, exact: bool) -> None:
        """Add a block's records, with the tokens of each (int64)."""
        self.records += len(block.turns)
        self.messages += sum(block.turns)
        self.with_system += int(block.system.sum())
        self.characters += int(block.characters.sum())
        self.tokens += int(tokens.sum())
        self.tokens_exact &= exact
        self._turns.update(
            block.turns if max(block.turns) <= MAX_TURNS else np.minimum(block.turns, MAX_TURNS + 1).tolist()
        )
        for lengths, values in ((self._lengths, block.characters), (self._token_counts, tokens)):
            lengths.add(values)
        self._add_letters(block)

    def _add_letters(self, block: "Block") -> None:
        text = np.frombuffer(block.data, np.uint8)
        # A part stands for a text that is all ASCII, and so all Latin: the number of its letters only weighs it.
        part = text[:SAMPLE] if block.is_ascii else text
        # A letter with the sixth bit set is lower case; subtracting wraps around, so one comparison is enough.
        letters = np.count_nonzero((part | np.uint8(32)) - np.uint8(97) < 26)
        self._letters[1] += round(letters * len(text) / len(part))
        if not block.is_ascii:
            others = text[text >= 128].tobytes().decode()
            points = np.frombuffer(others.encode("utf-32-le"), np.uint32)
            self._letters += np.bincount(_script_of()[points], minlength=len(self._letters))

    def fill(self, statistics: Statistics) -> None:
        statistics.records, statistics.messages = self.records, self.messages
        statistics.characters, statistics.with_system = self.characters, self.with_system
        statistics.tokens, statistics.tokens_exact = self.tokens, self.tokens_exact and self.records > 0
        statistics.turns = {
            f"over {MAX_TURNS}" if turns > MAX_TURNS else str(turns): count
            for turns, count in sorted(self._turns.items())
        }
        statistics.record_characters = self._lengths.percentiles()
        statistics.record_tokens = self._token_counts.percentiles()
        statistics.token_histogram = self._token_counts.histogram()
        total = int(self._letters[1:].sum())
        shares = [(int(count) / total, name) for count, name in zip(self._letters[1:], SCRIPTS, strict=True) if count]
        statistics.scripts = {name: round(share, 4) for share, name in sorted(shares, reverse=True)}


class Lengths:
    """Counts lengths, in little memory: exactly up to 1,023, then by ten binary digits, rounded up (0.2 % at most)."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._shortest, self._longest = 2**63, 0
        self._waiting: list[Array] = []  # many are counted in one go

    def add(self, values: Array) -> None:
        self._waiting.append(values)
        if len(self._waiting) >= TOGETHER:
            self._count()

    def _count(self) -> None:
        if not self._waiting:
            return
        values = np.concatenate(self._waiting)
        self._waiting = []
        excess = np.maximum(np.frexp(values.astype(np.float64))[1] - 10, 0)
        found, counts = np.unique(-(-values >> excess) << excess, return_counts=True)
        self._counts.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self._shortest = min(self._shortest, int(values.min()))
        self._longest = max(self._longest, int(values.max()))

    def percentiles(self) -> Percentiles:
        self._count()
        if not self._counts:
            return Percentiles()
        values = sorted(self._counts)
        reached = np.cumsum([self._counts[value] for value in values])
        at = [values[int(np.searchsorted(reached, share * reached[-1]))] for share in (0.5, 0.9, 0.99)]
        p50, p90, p99 = (min(max(value, self._shortest), self._longest) for value in at)
        return Percentiles(self._shortest, p50, p90, p99, self._longest)

    def histogram(self) -> dict[str, int]:
        """Upper bounds, powers of two from 16, and how many have at most this and more than the one before."""
        self._count()
        bounds: Counter[int] = Counter()
        for value, count in self._counts.items():
            bounds[max(16, 1 << (value - 1).bit_length())] += count
        return {str(bound): bounds[bound] for bound in sorted(bounds)}


def estimated_tokens(bytes_: Array, characters: Array, messages: Array | int) -> Array:
    """Tokens of each record, from the UTF-8 bytes and characters of its text.

    OpenAI's rule of thumb of four characters a token for English; an eighth more for each further byte of a character,
    which gives 0.6 a character for Cyrillic and 1.0 for Han, about what tokenizers of 32,000 to 200,000 tokens need.
    The true number is seldom less than half or more than twice of it.
    """
    estimate: Array = np.ceil(bytes_ / 4 + (bytes_ - characters) / 8).astype(np.int64) + MESSAGE_TOKENS * messages
    return estimate


@lru_cache(maxsize=1)
def _script_of() -> Array:
    """For each code point the script's number, 0 for none; ASCII is counted before and is 0 here. A megabyte."""
    numbers = np.zeros(0x110000, np.uint8)
    for number, ranges in enumerate(SCRIPTS.values(), 1):
        for first, last in ranges:
            numbers[first : last + 1] = number
    numbers[:128] = 0
    return numbers
