"""The report as a page to read: GitHub-flavoured Markdown, beside the JSON in the container of reports.

Names out of people's files stand in it, so all text is escaped: nothing in a file can make a link, an image or HTML.
"""

import re

from .codes import CODES
from .report import Finding, Report, Severity
from .wording import (
    CHECK_COMMAND,
    LENGTHS,
    UNCHANGED,
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

_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
# What GitHub makes a link or a mention of by itself, whatever is escaped in it; only a code span keeps it still.
_LINKLIKE = re.compile(r"[^\s`<>]*(?:://|@|\bwww\.|\bmailto:)[^\s`<>]*", re.IGNORECASE)
_SPECIAL = re.compile(r"[\\`*~<$]|(?<![^\W_])_|_(?![^\W_])|\](?=[\[(:])|&(?=#?\w+;)|\|")


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown, ending in a newline."""
    parts = [*_head(report), *_errors(report), *_warnings(report), *_statistics(report)]
    parts += [*_training(report), *_recipe(report), *_foot()]
    return "\n".join(parts) + "\n"


def rules_table() -> str:
    """All rules as a Markdown table, for docs/intake.md."""
    rows = [f"| `{code}` | {severity} | {text} |" for code, (severity, text) in CODES.items()]
    return "\n".join(["| code | | what it means |", "| --- | --- | --- |", *rows])


def escape(text: str) -> str:
    """``text`` on one line, for running text or a table's cell; its `code spans` stay, all else is taken literally."""
    text = sentence(text)
    parts, end = [], 0
    for span in _CODE_SPAN.finditer(text):
        parts += [_literal(text[end : span.start()]), code(span[2].strip())]
        end = span.end()
    return "".join([*parts, _literal(text[end:])])


def code(text: str) -> str:
    """``text`` as a code span, for running text or a table's cell, whatever is in it."""
    text = clean(text)
    if not text.strip():
        return f'"{text}"'
    if "|" in text and "\\" in text:  # a table takes `\|` for a pipe, but a backslash before a pipe cannot be said
        return "&#124;".join(code(piece) if piece.strip() else piece for piece in text.split("|"))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", r"\|")


def _literal(text: str) -> str:
    parts, end = [], 0
    for link in _LINKLIKE.finditer(text):
        word = link[0].rstrip(".,;:!?)\"'")
        parts += [_backslashed(text[end : link.start()]), code(word)]
        end = link.start() + len(word)
    return "".join([*parts, _backslashed(text[end:])])


def _backslashed(text: str) -> str:
    entities = {"|": "&#124;", "&": "&amp;"}
    return _SPECIAL.sub(lambda match: entities.get(match[0], "\\" + match[0]), text)


def _head(report: Report) -> list[str]:
    title = f"{escape(report.dataset or 'The file')}: {verdict(report)}"
    lines = [f"# {title}", "", f"**{verdict_sentence(report)}**"]
    if not report.valid:
        lines[-1] += " Nothing was trained. Mend what is listed here and drop the file again."
    about = [f"run {code(report.run_id)}"] if report.run_id else []
    about += [f"checked {report.checked_at:%Y-%m-%d %H:%M:%S} UTC"] if report.checked_at else []
    about += [f"ETag {code(report.etag)}"] if report.etag else []
    if about:
        lines += ["", ", ".join(about)[0].upper() + ", ".join(about)[1:] + "."]
    return lines


def _errors(report: Report) -> list[str]:
    found_codes = codes(report, Severity.ERROR)
    if not found_codes:
        return []
    lines = ["", "## What to mend first", "", "| rule | errors | what it means |", "| --- | ---: | --- |"]
    lines += [f"| {code(name)} | {found(report, name)} | {escape(meaning(name))} |" for name in found_codes]
    errors = [finding for finding in report.findings if finding.severity == Severity.ERROR]
    note = listed_of(report, Severity.ERROR)
    lines += ["", note] if note else []
    places = any(finding.column or finding.path for finding in errors)
    head = ["line", "where in it", "what was found", "what to do"]
    alike: dict[tuple[str, ...], list[Finding]] = {}
    for error in errors:  # a file has one mistake a hundred times rather than a hundred mistakes
        alike.setdefault((error.file, _within(error), escape(error.message), escape(error.fix)), []).append(error)
    rows = [[_ranges(same), *key[1:]] for key, same in alike.items()]
    if not places:
        head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    lines += ["", f"| {' | '.join(head)} |", f"| ---: |{' --- |' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _warnings(report: Report) -> list[str]:
    found_codes = codes(report, Severity.WARNING)
    if not found_codes:
        return []
    lines = ["", "## Warnings", "", "Trained on nevertheless, if there is no error; worth a look.", ""]
    lines += ["| rule | found | lines | what was found | what to do |", "| --- | ---: | --- | --- | --- |"]
    for name in found_codes:
        findings = listed(report, name)
        cells = [code(name), found(report, name), _lines(report, findings), _what(name, findings)]
        lines.append(f"| {' | '.join(cells)} | {escape(findings[0].fix) if findings else ''} |")
    return lines


def _what(name: str, findings: list[Finding]) -> str:
    """The message; where each line has its own, what the rule means and the first as an example."""
    messages = list(dict.fromkeys(finding.message for finding in findings))
    if len(messages) == 1:
        return escape(messages[0])
    example = f" The first: {escape(messages[0])}" if messages else ""
    return escape(meaning(name)) + example


def _lines(report: Report, findings: list[Finding]) -> str:
    """``3, 17, 20 and 1,200 more``."""
    count = report.counts[findings[0].code].count if findings else 0
    more = count - len(findings)
    shown = ", ".join(dict.fromkeys(_line(finding) for finding in findings))
    return f"{shown} and {more:,} more" if more > 0 else shown


def _line(finding: Finding) -> str:
    """``3``, or ``eval.jsonl 3``; a dash for the file as a whole."""
    line = str(finding.line or "")
    return f"{code(finding.file)} {line}".rstrip() if finding.file else line or "–"


def _ranges(findings: list[Finding]) -> str:
    """The lines of findings in one file: ``3, 7–12``, or ``eval.jsonl 3, 7–12``."""
    numbers = sorted({finding.line for finding in findings})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1 and number > 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(f"{first}–{last}" if first < last else str(first) for first, last in runs)
    file = findings[0].file
    return f"{code(file)} {shown if numbers != [0] else ''}".rstrip() if file else shown if numbers != [0] else "–"


def _within(finding: Finding) -> str:
    parts = [f"column {finding.column:,}" if finding.column else "", code(finding.path) if finding.path else ""]
    return ", ".join(part for part in parts if part)


def _statistics(report: Report) -> list[str]:
    sizes = report.statistics
    if not sizes.lines:
        return []  # refused before a line was read
    lines = ["", "## The data", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {escape(value)} |" for name, value in facts(report)]
    names, more = columns_left_out(sizes)
    if names:
        others = f" and {more:,} more" if more else ""
        lines.append(f"| columns left out of training | {', '.join(map(code, names))}{others} |")
    if rows := lengths(sizes):
        lines += ["", f"| length of a record | {' | '.join(LENGTHS)} |", f"| --- {'| ---: ' * len(LENGTHS)}|"]
        lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows]
    if bars := histogram(sizes):
        widths = max(len(label) for label, _, _ in bars), max(len(f"{count:,}") for _, count, _ in bars)
        lines += ["", f"Records by length in tokens{'' if sizes.tokens_exact else ', about'}:", "", "```text"]
        lines += [f"{label:>{widths[0]}}  {count:>{widths[1]},}  {bar}".rstrip() for label, count, bar in bars]
        lines.append("```")
    return lines


def _training(report: Report) -> list[str]:
    lines = ["", "## The split", "", split_sentence(report)] if report.valid else []
    if rows := training(report):
        lines += ["", "## The training, estimated", "", "| | |", "| --- | --- |"]
        lines += [f"| {name} | {escape(value)} |" for name, value in rows]
    return lines


def _recipe(report: Report) -> list[str]:
    text = recipe_yaml(report)
    if not text:
        return []
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    lines = ["", "## The recipe", "", "What is not named here is the training job's default for the base model."]
    if report.recipe_layers:
        layers = " ← ".join(escape(layer) for layer in report.recipe_layers)
        lines += ["", f"Put together from {layers}; what stands further right wins."]
    return [*lines, "", f"{fence}yaml", text, fence]


def _foot() -> list[str]:
    return ["", "---", "", f"{UNCHANGED} To check a file before you drop it: `{CHECK_COMMAND}`."]
