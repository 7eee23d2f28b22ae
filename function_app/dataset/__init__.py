"""Validation of a dropped file, line by line: normalised records, statistics, a split, findings a person can act on.

No Azure in here: lines come in as bytes, findings and normalised records come out.
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import IO, Literal

import msgspec

MIN_RECORDS = 10  # as OpenAI's and Azure OpenAI's fine-tuning ask for
MAX_FINDINGS = 100  # of each report; all are counted
MAX_LINE = 8 * 1024 * 1024  # bytes; a longer line is no chat, and would cost memory
ROLES = ("system", "user", "assistant")
SHAPE_FIX = 'A record is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}.'
CONVERT_FIX = (
    "Write chats as messages; for an Alpaca-style file join instruction and input into the user's message and put"
    " the response (or output) into the assistant's."
)


class Finding(msgspec.Struct, frozen=True):
    """One thing to mend. ``line`` counts from 1; 0 means the file as a whole."""

    code: str
    line: int
    message: str
    fix: str


class Statistics(msgspec.Struct):
    """What the file holds. Lengths in characters; a token is about four of English text."""

    records: int = 0
    messages: int = 0
    characters: int = 0
    longest_record: int = 0
    train: int = 0
    eval: int = 0
    extra_columns: list[str] = []


class Report(msgspec.Struct):
    """The outcome of a validation: valid when nothing was found."""

    findings: list[Finding] = []
    counts: dict[str, int] = {}
    statistics: Statistics = msgspec.field(default_factory=Statistics)

    @property
    def valid(self) -> bool:
        return not self.counts

    @property
    def total(self) -> int:
        """How much was found, the listed and the others."""
        return sum(self.counts.values())

    def add(self, code: str, line: int, message: str, fix: str) -> None:
        self.counts[code] = self.counts.get(code, 0) + 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(code, line, message, fix))

    def summary(self) -> str:
        """One sentence: the first finding, and how many more there are."""
        if self.valid:
            sizes = self.statistics
            return f"{sizes.records} records: {sizes.train} to train on, {sizes.eval} held out."
        first, total = self.findings[0], self.total
        where = f"line {first.line}: " if first.line else ""
        more = f" ({total - 1} more in the report)" if total > 1 else ""
        return f"{where}{first.message} {first.fix}{more}"


class Message(msgspec.Struct):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Record(msgspec.Struct):
    """A chat, or a prompt with its completion."""

    messages: list[Message] | msgspec.UnsetType = msgspec.UNSET
    prompt: str | msgspec.UnsetType = msgspec.UNSET
    completion: str | msgspec.UnsetType = msgspec.UNSET


class Chat(msgspec.Struct):
    """What the training job reads: the messages and nothing else."""

    messages: list[Message]


_decode = msgspec.json.Decoder(Record).decode
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def validate(lines: Iterable[bytes], report: Report) -> Iterator[bytes]:
    """Yield each good record of ``lines`` as one normalised JSON line; what is wrong goes into ``report``."""
    for number, raw in enumerate(lines, 1):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        line = line.strip()
        if not line:
            continue
        if number == 1 and _foreign_format(line, report):
            return
        record = _read(line, number, report)
        if record is None:
            continue
        before = report.total
        messages = _messages(record, number, report)
        if messages is None or report.total > before:
            continue
        _count(report.statistics, messages, line, number)
        yield _encode(Chat(messages)) + b"\n"
    if report.statistics.records < MIN_RECORDS and report.valid:
        report.add(
            "too_few_records",
            0,
            f"The file holds {report.statistics.records} records; fine-tuning needs at least {MIN_RECORDS}.",
            "Add more examples; fifty is a good start.",
        )


def _foreign_format(line: bytes, report: Report) -> bool:
    """Notice a file that is no JSON Lines at all, before every line of it is reported."""
    if line.startswith(b"[") or line == b"{":
        report.add(
            "not_json_lines",
            1,
            "This is one JSON document, not JSON Lines.",
            "Write one record a line: with jq, `jq -c '.[]' in.json > out.jsonl`.",
        )
        return True
    for magic, name in ((b"PAR1", "a Parquet file"), (b"PK\x03\x04", "a zip archive"), (b"\x1f\x8b", "a gzip file")):
        if line.startswith(magic):
            report.add("not_json_lines", 1, f"This is {name}, not JSON Lines.", "Unpack or convert it to .jsonl first.")
            return True
    if not line.startswith(b"{") and line.count(b",") >= 1 and not line.startswith(b'"messages'):
        report.add(
            "not_json_lines",
            1,
            "This looks like CSV, not JSON Lines.",
            'Write each row as {"prompt": "…", "completion": "…"} on a line of its own.',
        )
        return True
    return False


def _read(line: bytes, number: int, report: Report) -> Record | None:
    if len(line) > MAX_LINE:
        report.add(
            "line_too_long",
            number,
            f"The line has {len(line):,} bytes; {MAX_LINE:,} is the limit.",
            "Split the record.",
        )
        return None
    try:
        return _decode(line)
    except msgspec.ValidationError as error:
        report.add("wrong_type", number, _readable(str(error)), SHAPE_FIX)
    except msgspec.DecodeError as error:
        report.add("invalid_json", number, f"Not valid JSON: {error}.", "One complete JSON object on each line.")
    except UnicodeDecodeError as error:
        report.add(
            "invalid_utf8", number, f"Not valid UTF-8 at byte {error.start + 1} of the line.", "Save the file as UTF-8."
        )
    return None


def _readable(error: str) -> str:
    """``Expected `str`, got `int` - at `$.messages[0].content``` without the parser's punctuation."""
    message, _, path = error.partition(" - at ")
    message = message.replace("Object missing required field", "Missing field")
    where = path.strip("`").removeprefix("$.")
    if where.endswith("].role") and message.startswith("Invalid enum value"):
        message = f"Unknown role {message.removeprefix('Invalid enum value ')}; roles are {', '.join(ROLES)}"
    return f"{where}: {message}." if where else f"{message}."


def _messages(record: Record, number: int, report: Report) -> list[Message] | None:
    if record.messages is msgspec.UNSET:
        if isinstance(record.prompt, str) and isinstance(record.completion, str):
            pair = [Message("user", record.prompt), Message("assistant", record.completion)]
            _check_turns(pair, number, report, ("prompt", "completion"))
            return pair
        report.add(
            "unknown_format",
            number,
            "The record has no `messages`, and no `prompt` with a `completion`.",
            CONVERT_FIX,
        )
        return None
    _check_turns(record.messages, number, report)
    return record.messages


def _check_turns(messages: list[Message], number: int, report: Report, names: tuple[str, str] | None = None) -> None:
    for index, message in enumerate(messages):
        if not message.content.strip():
            field = names[index] if names else f"messages[{index}].content"
            report.add("empty_content", number, f"{field} is empty.", "Fill it in or leave the record out.")
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        report.add(
            "no_assistant", number, "No message is the assistant's: there is nothing to learn from.", "Add the answer."
        )
    elif roles[-1] != "assistant":
        report.add(
            "last_not_assistant",
            number,
            f"The last message is the {roles[-1]}'s.",
            "End the chat with the assistant's answer.",
        )
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns and any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)) and "assistant" in roles:
        report.add(
            "roles_out_of_order",
            number,
            f"The roles are {', '.join(roles)}.",
            "Let user and assistant take turns, after at most one system message at the start.",
        )


def _count(statistics: Statistics, messages: list[Message], line: bytes, number: int) -> None:
    length = sum(len(message.content) for message in messages)
    statistics.records += 1
    statistics.messages += len(messages)
    statistics.characters += length
    statistics.longest_record = max(statistics.longest_record, length)
    if number <= 100:  # columns of a file are the same throughout; looking at each line would cost a second parse
        extra = set(_keys(line)) - {"messages", "prompt", "completion"}
        statistics.extra_columns = sorted({*statistics.extra_columns, *extra})


def split(records: Iterable[bytes], holdout: float, train: IO[bytes], evaluation: IO[bytes] | None) -> tuple[int, int]:
    """Write each record to ``train`` or, a share ``holdout`` of them, to ``evaluation``; return how many went where.

    Which one depends on the record's own bytes alone, so it stays where it is when others are added or the file is
    sorted. With ``evaluation`` None (the user gave a held-out file) everything is trained on. Both may stay empty on a
    small file; ``rescue_holdout`` mends that.
    """
    counts = [0, 0]
    for record in records:
        held_out = evaluation is not None and _position(record) < holdout
        (evaluation if held_out and evaluation else train).write(record)
        counts[held_out] += 1
    return counts[0], counts[1]


def rescue_holdout(records: list[bytes]) -> int:
    """The index of the record to hold out when the hash held out none: the one nearest to the border."""
    return min(range(len(records)), key=lambda index: _position(records[index]))


def _position(record: bytes) -> float:
    """A record's place in [0, 1), from its content."""
    return int.from_bytes(sha256(record).digest()[:8], "big") / 2**64


def markdown(report: Report, source: str) -> str:
    """The report as a page to read."""
    title = "accepted" if report.valid else "rejected"
    statistics = report.statistics
    lines = [f"# {source}: {title}", "", report.summary(), "", "| | |", "| --- | --- |"]
    rows = [
        ("good records", f"{statistics.records:,}"),
        ("messages", f"{statistics.messages:,}"),
        ("characters", f"{statistics.characters:,}"),
        ("longest record, characters", f"{statistics.longest_record:,}"),
        ("to train on / held out", f"{statistics.train:,} / {statistics.eval:,}"),
        ("columns left out of training", ", ".join(map(_code, statistics.extra_columns)) or "none"),
    ]
    lines += [f"| {name} | {value} |" for name, value in rows]
    if not report.valid:
        lines += ["", f"## What to mend ({report.total:,} found, the first {len(report.findings)} listed)", ""]
        lines += [f"- **{code}**: {count:,}" for code, count in sorted(report.counts.items())]
        lines += ["", "| line | what | fix |", "| ---: | --- | --- |"]
        lines += [f"| {f.line or '–'} | {_cell(f.message)} | {_cell(f.fix)} |" for f in report.findings]
        lines += ["", "Nothing was trained and nothing was changed. Mend the file and drop it again."]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    return re.sub(r"[|\n\r]+", " ", text)
