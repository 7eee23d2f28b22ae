"""The check of a dataset: bytes in, records for the training job and a report out, in one pass and constant memory.

No Azure in here. A file comes in chunks of any size; it is worked on in blocks of whole lines, because a block costs a
few calls into compiled code where each line would cost as many.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import numpy as np

from . import formats, sensitive
from .block import Block
from .duplicates import Duplicates
from .findings import judge
from .gunzip import BrokenGzip, gunzip
from .lengths import NO_LIMITS, Limits, tell_length
from .records import Batch, Reader, weights
from .report import MAX_WARNINGS, LineErrors, Report
from .rules import Turns
from .split import Split
from .tally import Tally
from .tokens import TokenCounter, TokenizerError

Array = np.ndarray[Any, np.dtype[Any]]
Write = Callable[[bytes], object]

MAX_LINES = 100_000_000  # blank ones too; short lines take longer than their bytes
MAX_COUNTED = 100_000  # errors; to explain one takes twenty times as long as to read a good line
BLOCK = 512 * 1024  # bytes that are worked on at once: what is made of them fits a core's cache
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def check_file(
    chunks: Iterable[bytes],
    report: Report,
    *,
    name: str,
    holdout: float = 0.1,
    train: Write | None = None,
    held_out: Write | None = None,
    limits: Limits = NO_LIMITS,
    eval_chunks: Iterable[bytes] | None = None,
    eval_name: str = "eval.jsonl",
) -> int:
    """Check a file, with its own held-out file if there is one, and fill in ``report``.

    ``chunks`` are the file's bytes as they are stored, packed if ``name`` ends in ``.gz``. ``train`` and ``held_out``,
    if given, get whole lines as the training job reads them, many at once. Reading stops when the file is refused as a
    whole.
    Returns a fingerprint of all records and of where each went, the same whatever their order and the JSON's spacing.
    """
    try:
        tokens = TokenCounter(limits.tokenizer)
    except TokenizerError as error:
        report.error("invalid_tokenizer", str(error), TokenizerError.fix, file="tokenizer.json")
        tokens = TokenCounter(None)
    evaluation = None
    if eval_chunks is not None:
        evaluation = Check(report, Split(0, held_out, None), tokens, limits, name=eval_name, is_evaluation=True)
        _feed(evaluation, eval_chunks, eval_name)
    split = Split(0 if evaluation else holdout, train, held_out)
    check = Check(report, split, tokens, limits, name=name, evaluation=evaluation)
    _feed(check, chunks, name)
    if tokens.failed:
        report.error("invalid_tokenizer", str(tokens.failed), TokenizerError.fix, file="tokenizer.json")
    return (split.fingerprint + (evaluation.split.fingerprint * 3 if evaluation else 0)) % 2**64


def _feed(check: "Check", chunks: Iterable[bytes], name: str) -> None:
    try:
        for chunk in _unpacked(check, chunks, name) if name.endswith(".gz") else chunks:
            check.feed(chunk)
            if check.refused:
                break
    except BrokenGzip as error:
        check.refuse("broken_gzip", str(error), error.fix)
    check.finish()


def _unpacked(check: "Check", chunks: Iterable[bytes], name: str) -> Iterable[bytes]:
    """The unpacked bytes; nothing, and the file is refused, when it is something else than a packed file of lines."""
    rest = iter(chunks)
    head = next(rest, b"")
    foreign = formats.foreign_packing(head[: formats.HEAD], name)
    if foreign is not None:
        check.refuse(foreign.code, foreign.message, foreign.fix, foreign.line)
        return ()
    return gunzip(chain((head,), rest), check.limits.max_bytes)


class Check:
    """The check of one file, fed with its bytes.

    ``is_evaluation``: it is the user's own held-out file. ``evaluation``: the finished check of that file; its records
    are not trained on.
    """

    def __init__(
        self,
        report: Report,
        split: Split,
        tokens: TokenCounter,
        limits: Limits,
        *,
        name: str,
        is_evaluation: bool = False,
        evaluation: "Check | None" = None,
    ) -> None:
        self.report, self.limits, self.evaluation, self.is_evaluation = report, limits, evaluation, is_evaluation
        self.where: dict[str, Any] = {"file": name} if is_evaluation else {}
        self.refused = False
        self.duplicates, self.tally, self.split = Duplicates(), Tally(), split
        self._line_errors = LineErrors(report, **self.where)
        self.reader, self._turns = Reader(self._line_errors), Turns(self._line_errors)
        if evaluation:
            self.duplicates.density(evaluation.duplicates)
        self._errors_before = report.errors
        self._tokens, self._name = tokens, name
        self._head: list[bytes] | None = []  # until it is known what the file is
        self._held: list[bytes] = []  # the beginning of a line that is not complete
        self._held_size = 0
        self.lines = self.bytes = 0
        # Rules that are told once, with their count and the first lines.
        self.counted: dict[str, int] = {}
        self.first_lines: dict[str, list[int]] = {}

    @property
    def found_errors(self) -> bool:
        return self.report.errors > self._errors_before

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file."""
        self.bytes += len(chunk)
        if self.bytes > self.limits.max_bytes:
            self.refuse(
                "too_large",
                f"The file has more than {self.limits.max_bytes:,} bytes.",
                "Split it, and train on the parts in turn.",
            )
        elif self._head is None:
            self._take(chunk)
        else:
            self._head.append(chunk)
            if self.bytes > formats.HEAD:
                self._begin()

    def finish(self) -> None:
        """The file has ended: judge it as a whole, and fill in the statistics."""
        if self._head is not None and not self.refused:
            self._begin()
        if self._held_size:
            self._take(b"\n")
        self.split.finish()
        judge(self)

    def refuse(self, code: str, message: str, fix: str, line: int = 0) -> None:
        """Say what is wrong with the file as a whole; the rest of it need not be read."""
        if not self.refused:
            self.report.error(code, message, fix, line=line, **self.where)
        self.refused = True

    def _begin(self) -> None:
        head = b"".join(self._head or [])
        self._head = None
        foreign = formats.foreign_file(head[: formats.HEAD], self._name.removesuffix(".gz"))
        if foreign is not None:
            code = "empty_eval" if self.is_evaluation and foreign.code == "empty_file" else foreign.code
            self.refuse(code, foreign.message, foreign.fix, foreign.line)
        else:
            self._take(head.removeprefix(BYTE_ORDER_MARK))

    def _take(self, chunk: bytes) -> None:
        """Work on the lines that are complete, in blocks; keep the beginning of the next."""
        if self.refused:
            return
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._hold(chunk)
            return
        size = min(BLOCK, self.limits.max_line)
        start = 0
        if self._held_size:
            # The line that began in the chunk before is a block of its own.
            start = chunk.index(b"\n") + 1
            if self._held_size + start > self.limits.max_line:
                self._too_long(self._held_size + start)
            else:
                self._block(b"".join((*self._held, chunk[:start])))
            self._held, self._held_size = [], 0
        while start < end and not self.refused:
            # What is larger than a block is a single line.
            stop = chunk.rfind(b"\n", start, start + size) + 1 or chunk.index(b"\n", start) + 1
            if stop - start > self.limits.max_line:
                self._too_long(stop - start)
            else:
                self._block(chunk[start:stop])
            start = stop
        self._hold(chunk[end:])

    def _hold(self, part: bytes) -> None:
        self._held_size += len(part)
        if self._held_size <= self.limits.max_line:
            self._held.append(part)
        else:  # only its length is of interest
            self._held = []

    def _too_long(self, size: int) -> None:
        self.lines += 1
        self.report.error(
            "line_too_long",
            f"The line has {size:,} bytes; {self.limits.max_line:,} is the limit.",
            "Split the example, or leave it out.",
            line=self.lines,
            **self.where,
        )

    def _block(self, block: bytes) -> None:
        batch, lines = self.reader.read(block, self.lines + 1)
        self.lines += lines
        if self.reader.format == "text":
            batch = self._without_empty(batch)
            contents = [record.text for record in batch.records]
            orders: list[tuple[str, ...]] = [("text",)] * len(contents)
        else:
            names = ("prompt", "completion") if self.reader.format == "prompt-completion" else ()
            batch, contents, orders = self._turns.good(batch, names)
        self._line_errors.hand_over()
        if self.report.errors > MAX_COUNTED:
            self.refuse(
                "too_many_errors",
                f"There are more than {MAX_COUNTED:,} errors; what comes after line {self.lines:,} was not read.",
                "Mend what the first errors have in common; mostly it is one cause.",
            )
            return
        if self.lines > MAX_LINES:
            self.refuse(
                "too_large",
                f"The file has more than {MAX_LINES:,} lines.",
                "Split it, and train on the parts in turn.",
            )
            return
        if batch.records:
            self._rules(Block(contents, orders), batch)

    def _without_empty(self, batch: Batch) -> Batch:
        empty = {index for index, record in enumerate(batch.records) if not record.text.strip()}
        for index in sorted(empty):
            self._count("empty_text", batch.numbers[index])
        return batch.without(empty)

    def _rules(self, block: Block, batch: Batch) -> None:
        """The rules about what is said, for records that are well-formed."""
        numbers = batch.numbers
        for code, place in sensitive.find(block.data):
            self._count(code, numbers[block.record_at(place)])
        limit = min(filter(None, (self.limits.context, self.limits.max_length)), default=None)
        tokens, exact = self._tokens.count(block, limit)
        if limit is not None and self.reader.format != "text":  # a long text is trained on in pieces
            for index in np.flatnonzero(tokens > limit).tolist():
                tell_length(
                    self.report, self.limits, int(tokens[index]), self._tokens.exact, numbers[index], self.where
                )
        self.tally.add(block, tokens, exact)
        if not block.system.all():
            self._count(
                "some_without_system", numbers[int(np.argmin(block.system))], len(block.turns) - int(block.system.sum())
            )
        fingerprints = block.fingerprints ^ weights(batch.records)
        kept = np.ones(len(fingerprints), bool)
        if self.evaluation:
            kept = ~self.evaluation.duplicates.contains(fingerprints)
            for index in np.flatnonzero(~kept).tolist():
                self._count("eval_overlap", numbers[index])
        held_out = self.split.is_held_out(fingerprints)
        self.duplicates.add(block, fingerprints, np.asarray(numbers, np.int64), held_out)
        self.split.add(batch.lines, fingerprints, kept)

    def _count(self, code: str, line: int, times: int = 1) -> None:
        self.counted[code] = self.counted.get(code, 0) + times
        lines = self.first_lines.setdefault(code, [])
        if len(lines) < MAX_WARNINGS and line not in lines:
            lines.append(line)
