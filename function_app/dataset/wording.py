"""What the report says, in people's words and units: shared by its Markdown and its terminal form."""

import math
import unicodedata
from collections.abc import Iterable
from typing import Any

import yaml

from .codes import CODES
from .report import Estimate, Finding, Report, Severity, Statistics

MAX_COLUMNS = 20  # of a file's own columns that are named
MAX_SCRIPTS = 6
MAX_TURNS = 4  # rows of "messages in a record"; the others are summed up
MAX_NAME = 60  # characters of a column's name
MAX_TEXT = 600  # characters of a message or a fix: a cell, not a page
UNCHANGED = "The file itself was not changed."
CHECK_COMMAND = "python -m function_app.dataset FILE"


def verdict(report: Report) -> str:
    if not report.valid:
        return "rejected"
    return "accepted with warnings" if report.warnings else "accepted"


def verdict_sentence(report: Report) -> str:
    """``Rejected: 12 errors and 3 warnings.`` or what will be trained on."""
    found = [counted(report.errors, "error")] if report.errors else []
    found += [counted(report.warnings, "warning")] if report.warnings else []
    if not report.valid:
        return f"Rejected: {' and '.join(found)}."
    sizes = report.statistics
    trained = f"{counted(sizes.train, 'record')} to train on, {sizes.eval:,} held out"
    return f"Accepted{' with ' + found[0] if found else ''}: {trained}."


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def found(report: Report, code: str) -> str:
    """How often a rule struck."""
    count = report.counts[code]
    return f"{'about ' if count.about else ''}{count.count:,}"


def about(count: int, exact: bool) -> str:
    """``about 12,300``: an estimate shows three digits, so that nobody takes it for a count."""
    if exact or count < 1000:
        return f"{'' if exact else 'about '}{count:,}"
    return f"about {round(count, 3 - len(str(count))):,}"


def percent(share: float) -> str:
    """0.12 → ``12 %``. Never 0 % of what is there, nor 100 % of what is not all."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    if share < 0.001:
        return "under 0.1 %"
    if share > 0.999:
        return "over 99.9 %"
    return f"{share * 100:.{1 if share < 0.0995 or share > 0.99 else 0}f} %".replace(".0 %", " %")


def size(count: int) -> str:
    """Bytes, in decimal units as file managers show them."""
    if count < 1000:
        return counted(count, "byte")
    for power, unit in enumerate(("kB", "MB", "GB", "TB"), 1):
        if count < 999.5 * 1000**power or unit == "TB":
            value = count / 1000**power
            return f"{value:.{1 if value < 9.95 else 0}f} {unit}"
    raise AssertionError


def duration(seconds: float) -> str:
    """An estimated time: ``about 40 seconds``, ``about 12 minutes``, ``about 2.5 hours``, ``about 3 days``."""
    if seconds < 1:
        return "about a second"
    if seconds < 57.5:
        rounded = round(seconds) if seconds < 10 else 5 * round(seconds / 5)
        return f"about {counted(rounded, 'second')}"
    if seconds < 89.5 * 60:
        return f"about {counted(max(1, round(seconds / 60)), 'minute')}"
    if seconds < 47.75 * 3600:
        return f"about {round(seconds / 1800) / 2:g} hours"
    return f"about {round(seconds / 86400):,} days"


def dollars(amount: float) -> str:
    """``0.15 US dollars``; what costs something is never told as nothing."""
    return "less than 0.01 US dollars" if 0 < amount < 0.005 else f"{amount:,.2f} US dollars"


def plan(seconds: float | None, cost: float | None) -> str:
    """``about 3 minutes of training, about 0.15 US dollars``; empty when neither is known."""
    parts = [] if seconds is None else [f"{duration(seconds)} of training"]
    parts += [] if cost is None else [_about_dollars(cost)]
    return ", ".join(parts)


def _about_dollars(amount: float) -> str:
    told = dollars(amount)
    return told if told.startswith("less") else f"about {told}"


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """One printable line: control characters, direction marks and halves of characters shown as escapes.

    Column names and roles come out of people's files; they must not move a terminal's cursor or turn the text round.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    joiners = "\u200c\u200d"  # parts of ordinary words and emoji
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in hidden and character not in joiners
        else character
        for character in text
    )


def sentence(text: str) -> str:
    """A message or fix on one line."""
    return clean(" ".join(text.split()))


def columns_left_out(statistics: Statistics) -> tuple[list[str], int]:
    """The columns' names to show, and how many more there are."""
    names = [clean(name, MAX_NAME) or '""' for name in statistics.extra_columns]
    return names[:MAX_COLUMNS], max(0, len(names) - MAX_COLUMNS)


def facts(report: Report) -> list[tuple[str, str]]:
    """The statistics but lengths, histogram and columns, as rows of a name and a value."""
    sizes = report.statistics
    blank = f", {sizes.blank_lines:,} of them blank" if sizes.blank_lines else ""
    rows = [
        ("file", f"{size(sizes.bytes)}, {counted(sizes.lines, 'line')}{blank}"),
        ("format", sizes.format or "not known: no record could be read"),
        ("good records" if report.errors else "records", f"{sizes.records:,}"),
    ]
    if not sizes.records:
        return rows
    if sizes.format != "text":
        rows.append(("messages", f"{sizes.messages:,}"))
    if sizes.turns:
        rows.append(("messages in a record", turns(sizes)))
    if sizes.format == "chat":
        share = f"{sizes.with_system:,} of {sizes.records:,} ({percent(sizes.with_system / sizes.records)})"
        rows.append(("with a system prompt", share if sizes.with_system else "none"))
    basis = ", counted with tokenizer.json" if sizes.tokens_exact else ", estimated"
    rows += [("characters", f"{sizes.characters:,}"), ("tokens", about(sizes.tokens, sizes.tokens_exact) + basis)]
    if sizes.scripts:
        rows.append(("writing scripts", scripts(sizes)))
    return rows


def turns(statistics: Statistics) -> str:
    """``2 in 81 %, 3 in 12 %, others in 7 %``, the most frequent first."""
    if len(statistics.turns) == 1:
        return f"{next(iter(statistics.turns))} in each"
    total = sum(statistics.turns.values()) or 1
    ranked = sorted(statistics.turns.items(), key=lambda item: -item[1])
    return ", ".join(_shares([(f"{name} in", count / total) for name, count in ranked], MAX_TURNS, "others in"))


def scripts(statistics: Statistics) -> str:
    """``Latin 98 %, Han 1.5 %``."""
    ranked = sorted(statistics.scripts.items(), key=lambda item: -item[1])
    return ", ".join(_shares([(clean(name, MAX_NAME), share) for name, share in ranked], MAX_SCRIPTS, "others"))


def _shares(ranked: list[tuple[str, float]], most: int, others: str) -> Iterable[str]:
    rest = sum(share for _, share in ranked[most:])
    shown = [*ranked[:most], *([(others, rest)] if len(ranked) > most else [])]
    return (f"{name} {percent(min(1.0, share))}" for name, share in shown if share > 0)


LENGTHS = ("shortest", "half up to", "90 % up to", "99 % up to", "longest")


def lengths(statistics: Statistics) -> list[tuple[str, list[str]]]:
    """A row for characters and one for tokens; the columns are LENGTHS."""
    rows = [
        ("characters", statistics.record_characters),
        ("tokens" if statistics.tokens_exact else "tokens, about", statistics.record_tokens),
    ]
    return [(name, [f"{n:,}" for n in (p.min, p.p50, p.p90, p.p99, p.max)]) for name, p in rows if p.max]


def histogram(statistics: Statistics, width: int = 40, full: str = "█") -> list[tuple[str, int, str]]:
    """Records by tokens: ``("33–64", 310, "██████")``, bars up to ``width`` long; the empty ones between too."""
    filled = {int(bound): count for bound, count in statistics.token_histogram.items() if count}
    if not filled:
        return []
    bounds = [min(filled)]
    while bounds[-1] < max(filled):
        bounds.append(bounds[-1] * 2 if bounds[-1] else 1)
    bounds = sorted({*bounds, *filled})
    most = max(filled.values())
    rows = []
    for bound in bounds:
        count = filled.get(bound, 0)
        label = f"{bound // 2 + 1:,}–{bound:,}" if bound > 2 else f"{bound:,}"
        rows.append((label, count, full * math.ceil(count / most * width)))
    return rows


def split_sentence(report: Report) -> str:
    sizes = report.statistics
    left_out = report.counts.get("eval_overlap")
    also = f" {left_out.count:,} left out of training, because they are held out too." if left_out else ""
    return f"{counted(sizes.train, 'record')} to train on, {sizes.eval:,} held out to measure the model on.{also}"


def training(report: Report) -> list[tuple[str, str]]:
    """The estimate, as rows of a name and a value; none without one."""
    estimate = report.estimate
    if estimate is None:
        return []
    epochs = f"{estimate.epochs:g} {'epoch' if estimate.epochs == 1 else 'epochs'}"
    time = "not known for this base model and machine" if estimate.seconds is None else duration(estimate.seconds)
    rows = [
        ("steps", f"{estimate.steps:,} in {epochs}"),
        ("tokens in all epochs", about(estimate.trained_tokens, report.statistics.tokens_exact)),
        ("time", time),
    ]
    rows += [("reckoned from", sentence(estimate.basis))] if estimate.basis else []
    if estimate.cost_basis:
        rows += [("cost", costs(estimate)), ("prices", sentence(estimate.cost_basis))]
    return rows


def costs(estimate: Estimate) -> str:
    """``about 0.26 US dollars; by the time limit at most 12.35 US dollars``."""
    expected = "not known" if estimate.cost is None else _about_dollars(estimate.cost)
    if estimate.cost_limit is None or estimate.cost_limit == estimate.cost:
        return expected
    return f"{expected}; by the time limit at most {dollars(estimate.cost_limit)}"


def recipe_yaml(report: Report) -> str:
    """The recipe without what is left to the job; empty when there is none."""
    recipe = _without_none(report.recipe)
    if not recipe:
        return ""
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100).rstrip("\n")


def _without_none(section: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in section.items():
        inner = _without_none(value) if isinstance(value, dict) else value
        if inner is not None and inner not in ({}, []):
            kept[key] = inner
    return kept


def codes(report: Report, severity: Severity) -> list[str]:
    """The codes found: those of a file as a whole first, then the most frequent, which one mistake tends to be."""
    whole = {finding.code for finding in report.findings if not finding.line}
    mine = [code for code, count in report.counts.items() if count.severity == severity and count.count]
    return sorted(mine, key=lambda code: (code not in whole, -report.counts[code].count, code))


def listed(report: Report, code: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


def meaning(code: str) -> str:
    return CODES[code][1] if code in CODES else ""


def listed_of(report: Report, severity: Severity) -> str:
    """``The first 100 of 1,234 are listed.``; empty when all are."""
    shown = sum(finding.severity == severity for finding in report.findings)
    total = report.errors if severity == Severity.ERROR else report.warnings
    return f"The first {shown:,} of {total:,} are listed." if shown < total else ""
