"""The report in a terminal: what the file holds first, the errors and the verdict last, where the eye is."""

import re
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .report import Finding, Report, Severity
from .wording import (
    LENGTHS,
    clean,
    codes,
    columns_left_out,
    facts,
    found,
    histogram,
    lengths,
    listed,
    listed_of,
    meaning,
    recipe_yaml,
    sentence,
    split_sentence,
    training,
    verdict,
    verdict_sentence,
)

UNWRAPPED = 100_000  # columns of what is no terminal: a line stays one line, for grep and less
COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


def terminal(report: Report, notes: list[str], file: TextIO, *, width: int | None = None, quiet: bool = False) -> str:
    """The report as text for ``file``: with colours and wrapped to its width when it is a terminal, else plain.

    ``notes``: what was read beside the file, a line each. With ``quiet`` only the verdict.
    """
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    is_terminal = console.is_terminal
    if width is not None or not is_terminal:
        console = Console(
            file=file, highlight=False, markup=False, emoji=False, width=width if width is not None else UNWRAPPED
        )
    full = "█" if "utf" in console.encoding.lower() else "#"
    with console.capture() as captured:
        if not quiet:
            for part in _parts(report, notes, full, min(40, console.width - 30)):
                console.print(part)
        console.print(_closing(report))
    text = captured.get()
    return text if is_terminal else re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def _parts(report: Report, notes: list[str], full: str, width: int) -> list[RenderableType]:
    title = Text.assemble((clean(report.dataset or "The file"), "bold"), ": ", (verdict(report), _colour(report)))
    parts: list[RenderableType] = [title, *(Text(clean(note), "dim") for note in notes)]
    sizes = report.statistics
    if sizes.lines:
        rows = facts(report)
        names, more = columns_left_out(sizes)
        if names:
            rows.append(("columns left out", ", ".join(names) + (f" and {more:,} more" if more else "")))
        parts += [_heading("The data"), _rows(rows)]
        parts += [_lengths(report), *_histogram(report, full, max(8, width))]
    rows = [("split", split_sentence(report)), *training(report)] if report.valid else training(report)
    if rows:
        parts += [_heading("The training"), _rows(rows)]
    parts += _recipe(report)
    for severity, heading in ((Severity.WARNING, "Warnings"), (Severity.ERROR, "Errors")):
        parts += _findings(report, severity, heading)
    return [*parts, Text()]


def _colour(report: Report) -> str:
    return "bold red" if not report.valid else "bold yellow" if report.warnings else "bold green"


def _heading(text: str) -> Text:
    return Text(f"\n{text}", "bold")


def _rows(rows: list[tuple[str, str]], style: str = "dim") -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style=style, no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    return _indented(grid)


def _lengths(report: Report) -> RenderableType:
    rows = lengths(report.statistics)
    if not rows:
        return Group()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    for _ in LENGTHS:
        grid.add_column(justify="right")
    grid.add_row(Text("length of a record"), *(Text(name, "dim") for name in LENGTHS))
    for name, values in rows:
        grid.add_row(Text(f"  in {name}"), *map(Text, values))
    return Padding(grid, (1, 0, 0, 2), expand=False)


def _histogram(report: Report, full: str, width: int) -> list[RenderableType]:
    bars = histogram(report.statistics, width, full)
    if not bars:
        return []
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="cyan", no_wrap=True)
    for label, count, bar in bars:
        grid.add_row(Text(label), Text(f"{count:,}"), Text(bar))
    about = "" if report.statistics.tokens_exact else ", about"
    return [Text(f"\n  records by length in tokens{about}", "dim"), _indented(grid, 4)]


def _recipe(report: Report) -> list[RenderableType]:
    text = recipe_yaml(report)
    if not text:
        return []
    layers = f"from {', then '.join(map(clean, report.recipe_layers))}" if report.recipe_layers else ""
    lines = [clean(line) for line in text.splitlines()]
    return [
        Text.assemble(("\nThe recipe", "bold"), (f"  {layers}", "dim")),
        _indented(Text("\n".join(lines))),
    ]


def _findings(report: Report, severity: Severity, heading: str) -> list[RenderableType]:
    found_codes = codes(report, severity)
    if not found_codes:
        return []
    title = _heading(heading)
    if severity == Severity.ERROR and (note := listed_of(report, severity)):
        title.append(f"  {note}", "not bold dim")
    rules = [_indented(_rule(report, code, COLOURS[severity])) for code in found_codes]
    return [title, *rules]


def _rule(report: Report, code: str, colour: str) -> RenderableType:
    """A rule's findings, what they share said once: one mistake of an exporter strikes every line alike."""
    findings, count = listed(report, code), report.counts[code].count
    head = Text.assemble((code, colour), f"  {found(report, code)}")
    parts: list[RenderableType] = [head if count == 1 else head.append(f"  {meaning(code)}", "dim")]
    for fix in dict.fromkeys(finding.fix for finding in findings):
        parts += _places([finding for finding in findings if finding.fix == fix])
        parts += [_rows([("→", sentence(fix))], style="green")] if fix else []
    if count > len(findings):
        parts.append(_indented(Text(f"and {count - len(findings):,} more, not listed", "dim")))
    return Group(*parts)


def _places(findings: list[Finding]) -> list[RenderableType]:
    """Place and message of each; findings that say the same are one paragraph with their lines."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        alike.setdefault((finding.message, finding.file, finding.path), []).append(finding)
    if len(alike) * 2 > len(findings):  # each has much of its own to say
        placed = [(clean(finding.place, 80), sentence(finding.message)) for finding in findings]
        return [_rows(placed)] if any(place for place, _ in placed) else [_indented(Text(text)) for _, text in placed]
    parts: list[RenderableType] = []
    for (message, file, path), same in alike.items():
        within = clean(", ".join(part for part in (file, path) if part), 80)
        lines = ", ".join(_line(finding) for finding in same if finding.line)
        places = [f"{within}  " if within else "", f"line{'s' if len(same) > 1 else ''} {lines}" if lines else ""]
        parts += [_indented(Text(sentence(message)))]
        parts += [_indented(Text("".join(places), "dim"), 4)] if any(places) else []
    return parts


def _line(finding: Finding) -> str:
    return f"{finding.line} (column {finding.column})" if finding.column else str(finding.line)


def _indented(part: RenderableType, by: int = 2) -> RenderableType:
    return Padding(part, (0, 0, 0, by), expand=False)


def _closing(report: Report) -> Text:
    text = Text(verdict_sentence(report), _colour(report))
    if report.valid:
        return text
    return text.append(" It would not be trained on: mend the errors first.", "not bold default")
