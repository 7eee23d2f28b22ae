"""Why a line is no record: found out line by line, only where the fast way of records.py has failed."""

from collections.abc import Mapping
from typing import Any

import msgspec

from . import formats
from .report import Report

ROLES = ("system", "user", "assistant")
SHAPES = {
    "chat": '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    "prompt-completion": '{"prompt": "…", "completion": "…"}',
    "text": '{"text": "…"}',
}
COLUMNS = {"chat": ("messages",), "prompt-completion": ("prompt", "completion"), "text": ("text",)}
BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_anything = msgspec.json.Decoder()


class Explainer:
    """Adds an error to the report for each line that it is given. Never shows what a line says."""

    def __init__(self, report: Report, where: dict[str, Any]) -> None:
        self._report, self._where = report, where

    def not_json(self, line: bytes, number: int) -> None:
        """The line is no JSON object."""
        try:
            line.decode()
        except UnicodeDecodeError as error:
            self._add(
                "invalid_utf8",
                f"The byte 0x{line[error.start]:02x} is not UTF-8.",
                "Save the file as UTF-8; in an editor that shows it as it should be: save with the encoding UTF-8.",
                number,
                column=len(line[: error.start].decode()) + 1,
            )
            return
        try:
            value = _anything.decode(line)
        except BROKEN as error:
            self._broken(line, number, error)
            return
        if not self._foreign(formats.foreign_line(line, number), number):
            kinds = {list: "an array", str: "a text", bool: "true or false", int: "a number", float: "a number"}
            what = kinds.get(type(value), "null")
            self._add("wrong_type", f"The line is {what}, not an object.", f"A record is {SHAPES['chat']}.", number)

    def other_record(self, line: bytes, number: int, expected: str) -> None:
        """The line is an object but no record of ours; those before it have the format ``expected`` ("": none)."""
        record = self._decoded(line, number)
        if record is None or self._foreign(formats.foreign_record(list(record), record), number):
            return
        missing = " and ".join(f"`{name}`" for name in COLUMNS[expected or "chat"] if name not in record)
        shapes = [SHAPES[expected]] if expected else SHAPES.values()
        self._add("wrong_type", f"The record has no {missing}.", f"A record is {' or '.join(shapes)}.", number)

    def other_format(self, number: int, found: str, expected: str) -> None:
        """The record is good, and of another format than those before it."""
        self._add(
            "mixed_formats",
            f"The record has the format {found}, the ones before have {expected}.",
            f"Put each format into a file of its own, or rewrite this one as {SHAPES[expected]}.",
            number,
        )

    def wrong_value(self, line: bytes, number: int, format_: str, reason: str) -> None:
        """A value has the wrong type; ``reason`` is the decoder's."""
        message, _, path = reason.partition(" - at ")
        path = path.strip("`").removeprefix("$.")
        record = self._decoded(line, number)
        if record is None:
            return
        if format_ == "chat" and isinstance(record["messages"], list):
            # The decoder stops at the first wrong message, which is mostly like the others.
            messages = [each for each in record["messages"] if isinstance(each, dict)]
            if self._foreign(next(filter(None, map(formats.foreign_message, messages)), None), number, path=path):
                return
        if self._foreign(formats.foreign_record(list(record), record), number, path=path):
            return
        if path.endswith("].role") and message.startswith("Invalid enum value"):
            self._add("unknown_role", "An unknown role.", f"The roles are {', '.join(ROLES)}.", number, path=path)
            return
        if message.startswith("Invalid enum value"):
            message = "Expected 0 or 1"
        message = message.replace("Object missing required field", "Missing field")
        self._add("wrong_type", f"{message}.", f"A record is {SHAPES[format_]}.", number, path=path)

    def _broken(self, line: bytes, number: int, error: Exception) -> None:
        reason = str(error)
        column = 0
        if "(byte " in reason:
            reason, _, place = reason.rpartition(" (byte ")
            column = formats.json_column(line, int(place.rstrip(")")))
        if self._foreign(formats.foreign_line(line, number), number, column=column):
            return
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else reason[:1].lower() + reason[1:]
        fix = "Each line holds one complete JSON object."
        self._add("invalid_json", f"Not valid JSON: {reason}.", fix, number, column=column)

    def _decoded(self, line: bytes, number: int) -> Mapping[str, Any] | None:
        # The names of a line's columns can be read although a value is broken.
        try:
            record: Mapping[str, Any] = _anything.decode(line)
        except BROKEN:
            self.not_json(line, number)
            return None
        return record

    def _foreign(self, found: formats.Foreign | None, number: int, **where: Any) -> bool:
        if found is not None:
            self._add(found.code, found.message, found.fix, number, **where)
        return found is not None

    def _add(self, code: str, message: str, fix: str, line: int, **where: Any) -> None:
        self._report.error(code, message, fix, line=line, **self._where, **where)
