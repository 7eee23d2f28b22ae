"""Lines become records: a whole block at once where all is well, line by line where something has to be explained."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import xxhash

from .chat_formats import SUSPECT_COLUMNS
from .explain import BROKEN, COLUMNS, Explainer
from .lines import Lines
from .report import LineErrors

Array = np.ndarray[Any, np.dtype[Any]]
Role = Literal["system", "user", "assistant"]
MESSAGE_COLUMNS = frozenset({"role", "content", "weight"})
# Columns without which a record may make no sense: it is looked at more closely.
MAX_COLUMNS, MAX_NAME = 1000, 100  # names of columns that are kept, and their characters: keys may be data
SUSPECT = SUSPECT_COLUMNS | {"messages[].tool_calls", "messages[].function_call", "messages[].tool_call_id"}


class Message(msgspec.Struct, gc=False, omit_defaults=True):
    """One turn. ``weight`` 0: an answer that is read as context and not trained on."""

    role: Role
    content: str
    weight: Literal[0, 1] | None = None


class Chat(msgspec.Struct, gc=False):
    """What the training job reads of a chat: the messages and nothing else."""

    messages: list[Message]


class PlainMessage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A message without weight or any other extra: nearly all are."""

    role: Role
    content: str


class PlainChat(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A chat that can go to the training job as its line stands."""

    messages: list[PlainMessage]


class Pair(msgspec.Struct, gc=False):
    """A prompt and its completion; the training job gets them as a chat."""

    prompt: str
    completion: str


class Text(msgspec.Struct, gc=False):
    """Plain text to go on with."""

    text: str


class PlainText(Text, gc=False, forbid_unknown_fields=True):
    """A text that can go to the training job as its line stands."""


class Batch(NamedTuple):
    """Records of some lines of a file, by their ``numbers``, and as the training job reads them."""

    records: Sequence[Any]  # Chat, PlainChat or Text; a Pair has become a Chat
    lines: Lines
    numbers: Sequence[int]

    def without(self, bad: set[int]) -> "Batch":
        """The batch but for the records of these indexes."""
        if not bad:
            return self
        rest = [index for index in range(len(self.records)) if index not in bad]
        return _batch([self.records[index] for index in rest], [self.numbers[index] for index in rest])


_PLAIN: dict[str, msgspec.json.Decoder[Any]] = {
    "chat": msgspec.json.Decoder(PlainChat),
    "text": msgspec.json.Decoder(PlainText),
}
_LOOSE: dict[str, msgspec.json.Decoder[Any]] = {
    "chat": msgspec.json.Decoder(Chat),
    "prompt-completion": msgspec.json.Decoder(Pair),
    "text": msgspec.json.Decoder(Text),
}
_columns = msgspec.json.Decoder(dict[str, msgspec.Raw])
_message_columns = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_encode_lines = msgspec.json.Encoder().encode_lines


class Reader:
    """Reads the lines of one file. The first record decides its format."""

    def __init__(self, errors: LineErrors) -> None:
        self.format = ""
        self.blank_lines = 0
        self.extra_columns: set[str] = set()
        self._explain = Explainer(errors)
        self._plain = True  # so far every record could go to the training job as it stands

    def read(self, block: bytes, number: int) -> tuple[Batch, int]:
        """The good records of ``block``, and how many lines it has; what is wrong with the others is reported.

        Each line ends in a line feed; ``number`` is the first one's.
        """
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n")
        lines = Lines(block)
        total = len(lines)
        if block.isspace():
            self.blank_lines += total
            return _batch([], []), total
        numbers: Sequence[int] = range(number, number + total)
        if lines.shortest == 1:  # nothing but its end
            block, numbers = _without_blank_lines(block, number)
            lines = Lines(block)
            self.blank_lines += total - len(numbers)
        format_ = self.format or _format_of(block.partition(b"\n")[0])
        batch = self._read_at_once(lines, numbers, format_) if format_ else None
        if batch is None:
            return self._read_each(block, numbers), total
        self.format = format_
        return batch, total

    def _read_at_once(self, lines: Lines, numbers: Sequence[int], format_: str) -> Batch | None:
        """None when any of the lines needs a closer look."""
        plain = self._plain and format_ in _PLAIN
        try:
            records = (_PLAIN if plain else _LOOSE)[format_].decode_lines(lines.data)
        except BROKEN:
            return None
        # As many records as lines, and every line an object: otherwise one may span two lines, or two share one.
        if len(records) != len(lines) or not lines.are_objects():
            return None
        if plain:
            return Batch(records, lines, numbers)
        extra = set().union(*(_extra_columns(format_, _columns.decode(line)) for line in _split(lines.data)))
        if extra & SUSPECT:
            return None
        self._note(extra)
        return _batch(records, numbers)

    def _note(self, extra: set[str]) -> None:
        new = {name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in extra} - self.extra_columns
        self.extra_columns.update(sorted(new)[: MAX_COLUMNS - len(self.extra_columns)])

    def _read_each(self, block: bytes, numbers: Sequence[int]) -> Batch:
        records: list[Any] = []
        kept: list[int] = []
        for number, line in zip(numbers, _split(block), strict=True):
            text = line.rstrip()  # what stands before counts for the columns of errors
            if not text:
                self.blank_lines += 1
                continue
            record = self._read_line(text, number)
            if record is not None:
                records.append(record)
                kept.append(number)
        return _batch(records, kept)

    def _read_line(self, line: bytes, number: int) -> Any | None:
        try:
            columns: dict[str, msgspec.Raw] = _columns.decode(line)
        except BROKEN:
            self._explain.not_json(line, number)
            return None
        found = _format_with(columns)
        if not found:
            self._explain.other_record(line, number, self.format)
            return None
        if self.format and found != self.format:
            self._explain.other_format(number, found, self.format)
            return None
        try:
            record = _LOOSE[found].decode(line)
            extra = _extra_columns(found, columns)
        except BROKEN as error:
            self._explain.wrong_value(line, number, found, str(error))
            return None
        if extra & SUSPECT and self._explain.loses_its_sense(line, number):
            return None
        self.format = found
        self._note(extra)
        if extra or (found == "chat" and any(message.weight is not None for message in record.messages)):
            self._plain = False
        return record


def _without_blank_lines(block: bytes, number: int) -> tuple[bytes, list[int]]:
    """The lines that hold something, and their numbers."""
    kept = [(place, line) for place, line in enumerate(_split(block), number) if line and not line.isspace()]
    return b"".join([line + b"\n" for _, line in kept]), [place for place, _ in kept]


def _format_of(line: bytes) -> str:
    try:
        return _format_with(_columns.decode(line))
    except BROKEN:
        return ""


def _format_with(columns: Collection[str]) -> str:
    return next((name for name, needed in COLUMNS.items() if all(key in columns for key in needed)), "")


def _extra_columns(format_: str, columns: dict[str, msgspec.Raw]) -> set[str]:
    """The names that are left out; those of messages as ``messages[].name``."""
    extra = columns.keys() - COLUMNS[format_]
    if format_ == "chat":
        for message in _message_columns.decode(columns["messages"]):
            extra |= {f"messages[].{name}" for name in message.keys() - MESSAGE_COLUMNS}
    return extra


def _split(block: bytes) -> list[bytes]:
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def weights(records: Sequence[Any]) -> Array:
    """A number for each record (uint64), 0 unless some of its messages have weight 0: part of what it is known by."""
    if not isinstance(records[0], Chat):
        return np.zeros(len(records), np.uint64)
    silent = [tuple(place for place, each in enumerate(chat.messages) if each.weight == 0) for chat in records]
    return np.array([xxhash.xxh3_64_intdigest(repr(places).encode()) if places else 0 for places in silent], np.uint64)


def _batch(records: Sequence[Any], numbers: Sequence[int]) -> Batch:
    """The records, written anew as the training job reads them."""
    if records and isinstance(records[0], Pair):
        records = [Chat([Message("user", pair.prompt), Message("assistant", pair.completion)]) for pair in records]
    return Batch(records, Lines(_encode_lines(records)), numbers)
