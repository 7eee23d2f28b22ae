"""What is found in a file: findings with their place and their fix, counts of all, and the statistics."""

from collections import Counter
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

MAX_ERRORS = 100  # listed in a report; all are counted
MAX_WARNINGS = 10  # listed of each code, for the same reason


class Severity(StrEnum):
    """An error stops the run before anything is spent; a warning is told and trained on."""

    ERROR = "error"
    WARNING = "warning"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing to look at.

    ``line`` counts from 1, ``column`` (in characters) too; 0 means the file as a whole. ``path`` is the JSON path
    within the line, without its ``$.``. ``file`` is empty for the dropped file itself, else the name of its companion.
    """

    code: str
    severity: Severity
    message: str
    fix: str
    line: int = 0
    column: int = 0
    path: str = ""
    file: str = ""

    @property
    def place(self) -> str:
        """``eval.jsonl, line 3, column 7, messages[0].content``; empty for the dropped file as a whole."""
        parts = [self.file, f"line {self.line}" if self.line else "", f"column {self.column}" if self.column else ""]
        return ", ".join(part for part in [*parts, self.path] if part)


class Count(msgspec.Struct):
    """How often a rule struck, the listed findings and the others. ``about`` marks an estimate (of huge files)."""

    severity: Severity
    count: int = 0
    about: bool = False


class Percentiles(msgspec.Struct, frozen=True):
    """Of a length over all records."""

    min: int = 0
    p50: int = 0
    p90: int = 0
    p99: int = 0
    max: int = 0


class Statistics(msgspec.Struct):
    """What the good records hold.

    ``tokens`` is estimated unless ``tokens_exact``. ``token_histogram``: upper bound of the bucket (a power of two, as
    text, because JSON's keys are texts) → records. ``scripts``: writing script → share of the letters, largest first.
    """

    format: str = ""  # chat, prompt-completion or text; empty when no record could be read
    bytes: int = 0
    lines: int = 0
    blank_lines: int = 0
    records: int = 0
    train: int = 0
    eval: int = 0
    messages: int = 0
    characters: int = 0
    tokens: int = 0
    tokens_exact: bool = False
    token_histogram: dict[str, int] = {}
    record_characters: Percentiles = Percentiles()
    record_tokens: Percentiles = Percentiles()
    turns: dict[str, int] = {}  # messages in a record → records
    with_system: int = 0
    scripts: dict[str, float] = {}
    extra_columns: list[str] = []


class Estimate(msgspec.Struct, frozen=True):
    """What training on the file will take; None where nothing is known to reckon with. ``basis`` says how.

    ``cost``: US dollars that are expected; ``cost_limit``: what the time limit allows at most.
    """

    epochs: float
    steps: int
    trained_tokens: int
    seconds: float | None = None
    basis: str = ""
    cost: float | None = None
    cost_limit: float | None = None
    cost_basis: str = ""


class Report(msgspec.Struct):
    """The outcome of a check. The first MAX_ERRORS errors and MAX_WARNINGS warnings a code are listed, all counted."""

    dataset: str = ""
    run_id: str = ""
    etag: str = ""
    checked_at: datetime | None = None
    findings: list[Finding] = []
    counts: dict[str, Count] = {}
    statistics: Statistics = msgspec.field(default_factory=Statistics)
    recipe: dict[str, Any] = {}
    recipe_layers: list[str] = []  # where the recipe's values come from, the weakest first
    estimate: Estimate | None = None

    @property
    def valid(self) -> bool:
        return self.errors == 0

    @property
    def errors(self) -> int:
        return self._total(Severity.ERROR)

    @property
    def warnings(self) -> int:
        return self._total(Severity.WARNING)

    def _total(self, severity: Severity) -> int:
        return sum(count.count for count in self.counts.values() if count.severity == severity)

    def error(self, code: str, message: str, fix: str, **where: Any) -> None:
        """Add an error; ``where``: line, column, path, file."""
        self.add(Finding(code, Severity.ERROR, message, fix, **where))

    def warn(self, code: str, message: str, fix: str, *, times: int = 1, about: bool = False, **where: Any) -> None:
        """Add a warning that stands for ``times`` of its kind (``about``: roughly); ``where`` as with an error."""
        self.add(Finding(code, Severity.WARNING, message, fix, **where), times, about)

    def add(self, finding: Finding, times: int = 1, about: bool = False) -> None:
        """Count a finding, and list it while there is room."""
        count = self.counts.setdefault(finding.code, Count(finding.severity))
        count.count += times
        count.about |= about
        if finding.severity == Severity.WARNING:
            if sum(each.code == finding.code for each in self.findings) < MAX_WARNINGS:
                self.findings.append(finding)
        elif self.errors <= MAX_ERRORS:
            self.findings.append(finding)

    def summary(self) -> str:
        """One sentence: the first error and how many more there are, or what will be trained on."""
        if self.valid:
            sizes = self.statistics
            warned = f" {self.warnings:,} warnings in the report." if self.warnings else ""
            return f"{sizes.records:,} records: {sizes.train:,} to train on, {sizes.eval:,} held out.{warned}"
        first = next(f for f in self.findings if f.severity == Severity.ERROR)
        more = f" ({self.errors - 1:,} more in the report)" if self.errors > 1 else ""
        return f"{first.place}: {first.message} {first.fix}{more}".removeprefix(": ")


class LineErrors:
    """The errors of a block, which several rules find one after the other; the report gets them line by line."""

    def __init__(self, report: Report, file: str = "") -> None:
        self._report, self._file = report, file
        self._found: list[Finding] = []
        self._more: Counter[str] = Counter()  # those that no report would list

    def add(self, code: str, message: str, fix: str, line: int, *, column: int = 0, path: str = "") -> None:
        """Keep an error for ``hand_over``."""
        if len(self._found) < 20 * MAX_ERRORS:
            self._found.append(Finding(code, Severity.ERROR, message, fix, line, column, path, self._file))
        else:
            self._more[code] += 1

    def hand_over(self) -> None:
        """Give the report what was kept, in the order of the lines."""
        for finding in sorted(self._found, key=lambda each: each.line):
            self._report.add(finding)
        for code, count in self._more.items():
            self._report.counts.setdefault(code, Count(Severity.ERROR)).count += count
        self._found.clear()
        self._more.clear()
