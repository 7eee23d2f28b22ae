"""The end of a check: what is to be said about the file as a whole, and its statistics."""

from typing import TYPE_CHECKING

from . import sensitive
from .report import MAX_WARNINGS

if TYPE_CHECKING:
    from .check import Check

MIN_RECORDS = 10  # as OpenAI's and Azure OpenAI's fine-tuning ask for

HIDDEN = "(a name that looks like personal data)"

# What is told once for all lines: message and fix.
TOLD = {
    "secret": (
        "This looks like a key, a token or a password.",
        "Take it out and have it revoked: the model would repeat it to whoever asks.",
    ),
    "email": ("An e-mail address.", "Replace it by one at example.com, unless the model is meant to know it."),
    "card_number": ("This passes as a payment card's number.", "Take it out: the model would repeat it."),
    "eval_overlap": (
        "The same example is in eval.jsonl; it was left out of training, so that the measure is fair.",
        "Take it out of one of the two files.",
    ),
    "empty_text": ("The text is empty; it was left out.", "Nothing to do, unless there should be one."),
}


def judge(check: "Check") -> None:
    """Add the findings that only the whole file shows, and fill in the report's statistics."""
    if not check.refused:
        _judge_size(check)
        _tell_counted(check)
        _tell_system(check)
        _tell_duplicates(check)
    statistics = check.report.statistics
    if check.is_evaluation:
        statistics.eval = check.split.trained
        return
    statistics.format = check.reader.format
    statistics.bytes, statistics.lines, statistics.blank_lines = check.bytes, check.lines, check.reader.blank_lines
    statistics.extra_columns = sorted({HIDDEN if _tells(name) else name for name in check.reader.extra_columns})
    statistics.train = check.split.trained
    statistics.eval += check.split.evaluated
    check.tally.fill(statistics)


def _tells(name: str) -> bool:
    """Whether a column's name is itself what a report must not show: some files have their data in the keys."""
    return any(sensitive.find(name.encode() + b"\n"))


def _judge_size(check: "Check") -> None:
    report, records = check.report, check.tally.records
    if check.is_evaluation:
        if not records and not check.found_errors:
            report.error(
                "empty_eval",
                "The held-out file holds no example.",
                "Fill it, or delete it to have a split made.",
                **check.where,
            )
    elif check.lines == check.reader.blank_lines:
        report.error("empty_file", "The file is empty.", "Write one example on each line.")
    elif records < MIN_RECORDS and not check.found_errors:
        report.error(
            "too_few_records",
            f"The file holds {records} good examples; fine-tuning needs at least {MIN_RECORDS}.",
            "Add more; fifty is a good start.",
        )
    elif not check.split.trained and not check.found_errors:
        message, fix = (
            (
                "Every example is in eval.jsonl too, so none is left to train on.",
                "Put other examples into eval.jsonl, or delete it to have a split made.",
            )
            if check.evaluation
            else ("All examples are held out, so none is left to train on.", "Set a smaller evaluation.holdout.")
        )
        report.error("too_few_records", message, fix)


def _tell_counted(check: "Check") -> None:
    for code, (message, fix) in TOLD.items():
        _tell(
            check, code, check.counted.get(code, 0), [(line, message) for line in check.first_lines.get(code, [])], fix
        )


def _tell_system(check: "Check") -> None:
    without, records = check.counted.get("some_without_system", 0), check.tally.records
    if 0 < without < records and check.reader.format == "chat":
        lines = check.first_lines["some_without_system"]
        message = f"{without:,} of {records:,} examples have no system message, the others have."
        fix = "Give all of them one or none, unless both ways of asking are meant to work."
        check.report.warn("some_without_system", message, fix, line=lines[0], **check.where)


def _tell_duplicates(check: "Check") -> None:
    count, first = check.duplicates.exact()
    fix = "Leave it out, unless it is meant to count twice."
    entries = [(again.line, f"The same example as on line {again.first}.") for again in first[:MAX_WARNINGS]]
    _tell(check, "duplicate", count, entries, fix, about=not check.duplicates.exhaustive)

    near = check.duplicates.near()
    fix = "Keep the better one, unless both are meant to count."
    entries = [(again.line, f"Nearly the same example as on line {again.first}.") for again in near[:MAX_WARNINGS]]
    _tell(check, "near_duplicate", len(near), entries, fix, about=not check.duplicates.all_compared)

    fix = "Take it out of one of the two, or put your own examples into eval.jsonl."
    if check.evaluation:
        crossing = check.duplicates.near(check.evaluation.duplicates)
        entries = [
            (again.line, f"Nearly the same example as on line {again.first} of eval.jsonl.") for again in crossing
        ]
    else:
        crossing = [again for again in near if again.held_out]
        entries = [
            (again.line, f"Nearly the same example as on line {again.first}; one of them is held out, one trained on.")
            for again in crossing
        ]
    _tell(
        check, "eval_near_overlap", len(crossing), entries[:MAX_WARNINGS], fix, about=not check.duplicates.all_compared
    )


def _tell(check: "Check", code: str, count: int, entries: list[tuple[int, str]], fix: str, about: bool = False) -> None:
    """List the entries; the first stands for those that are not listed too, so that the count is right."""
    for index, (line, message) in enumerate(entries):
        times = count - len(entries) + 1 if index == 0 else 1
        check.report.warn(code, message, fix, line=line, times=times, about=about, **check.where)
