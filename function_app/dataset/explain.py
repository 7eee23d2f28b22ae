"""Why a line is no record: found out line by line, only where the fast way of records.py has failed."""

from collections.abc import Mapping
from typing import Any

import msgspec

from . import formats
from .report import LineErrors

ROLES = ("system", "user", "assistant")
SHAPES = {
    "chat": '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    "prompt-completion": '{"prompt": "…", "completion": "…"}',
    "text": '{"text": "…"}',
}
COLUMNS = {"chat": ("messages",), "prompt-completion": ("prompt", "completion"), "text": ("text",)}
AFTER_BOM = 0  # the line's number for foreign_line, which would skip another byte order mark on line 1
BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_anything = msgspec.json.Decoder()


class Explainer:
    """Adds an error for each line that it is given. Never shows what a line says."""

    def __init__(self, errors: LineErrors) -> None:
        self._errors = errors

    def not_json(self, line: bytes, number: int) -> None:
        """The line is no JSON object."""
        try:
            line.decode()
        except UnicodeDecodeError as error:
            self._errors.add(
                "invalid_utf8",
                f"The byte 0x{line[error.start]:02x} is not UTF-8.",
                "Save the file as UTF-8, in an editor that shows it as it should be; or, if it came from Windows:"
                " `iconv -f WINDOWS-1252 -t UTF-8 in.jsonl > out.jsonl`.",
                number,
                column=len(line[: error.start].decode()) + 1,
            )
            return
        try:
            value = _anything.decode(line)
        except BROKEN as error:
            self._broken(line, number, error)
            return
        if not self._foreign(formats.foreign_line(line, AFTER_BOM), number):
            kinds = {list: "an array", str: "a text", bool: "true or false", int: "a number", float: "a number"}
            what = kinds.get(type(value), "null")
            self._errors.add(
                "wrong_type", f"The line is {what}, not an object.", f"A record is {SHAPES['chat']}.", number
            )

    def other_record(self, line: bytes, number: int, expected: str) -> None:
        """The line is an object but no record of ours; those before it have the format ``expected`` ("": none)."""
        record = self._decoded(line, number)
        if record is None or self._foreign(formats.foreign_record(list(record), record), number):
            return
        missing = " and ".join(f"`{name}`" for name in COLUMNS[expected or "chat"] if name not in record)
        shapes = [SHAPES[expected]] if expected else SHAPES.values()
        self._errors.add("wrong_type", f"The record has no {missing}.", f"A record is {' or '.join(shapes)}.", number)

    def loses_its_sense(self, line: bytes, number: int) -> bool:
        """Whether the record, which is good but for columns that are left out, makes no sense without them."""
        record = self._decoded(line, number)
        return record is None or self._foreign(formats.foreign_record(list(record), record), number)

    def other_format(self, number: int, found: str, expected: str) -> None:
        """The record is good, and of another format than those before it."""
        self._errors.add(
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
        if self._foreign(formats.foreign_record(list(record), record), number, path=path):
            return
        if path.endswith("].role") and message.startswith("Invalid enum value"):
            self._errors.add(
                "unknown_role", "An unknown role.", f"The roles are {', '.join(ROLES)}.", number, path=path
            )
            return
        if path.endswith("].weight"):
            message = "A weight is 0 or 1"
        message = message.replace("Object missing required field", "Missing field")
        self._errors.add("wrong_type", f"{message}.", f"A record is {SHAPES[format_]}.", number, path=path)

    def _broken(self, line: bytes, number: int, error: Exception) -> None:
        reason = str(error)
        column = 0
        if "(byte " in reason:
            reason, _, place = reason.rpartition(" (byte ")
            # After a complete value the decoder's place is one too far.
            offset = int(place.rstrip(")")) - ("trailing" in reason)
            column = formats.json_column(line, offset)
        if self._foreign(formats.foreign_line(line, AFTER_BOM), number, column=column):
            return
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else reason[:1].lower() + reason[1:]
        fix = "Each line holds one complete JSON object."
        self._errors.add("invalid_json", f"Not valid JSON: {reason}.", fix, number, column=column)

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
            if found.path:
                where["path"] = found.path
            self._errors.add(found.code, found.message, found.fix, number, **where)
        return found is not None
