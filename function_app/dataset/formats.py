"""What a file is that is not JSON Lines, and how to convert it. The door to the other formats' modules."""

import re
from pathlib import PurePosixPath

import msgspec

from .binary_formats import UNPACK, foreign_binary, unknown_binary
from .foreign import SHAPE, Foreign, jq, prepare_named
from .line_formats import foreign_line, json_column
from .message_formats import foreign_message
from .record_formats import foreign_record
from .text_formats import foreign_text

__all__ = [
    "HEAD",
    "Foreign",
    "foreign_file",
    "foreign_line",
    "foreign_message",
    "foreign_packing",
    "foreign_record",
    "json_column",
]

HEAD = 64 * 1024  # bytes of a file that are looked at; fewer are the whole file
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
OURS = ("messages", "prompt", "completion", "text")
# The keys under which a file's records lie when they are all in one object.
WRAPPERS = ("data", "train", "records", "examples", "rows", "items", "samples", "dataset", "training_data", "results")

ENCODINGS: list[tuple[re.Pattern[bytes], str]] = [
    (re.compile(rb"\xff\xfe\0\0|(?:[\t\n\r -~]\0\0\0){2}"), "UTF-32"),
    (re.compile(rb"\0\0\xfe\xff|(?:\0\0\0[\t\n\r -~]){2}"), "UTF-32 (big-endian)"),
    (re.compile(rb"\xff\xfe|(?:[\t\n\r -~]\0){2}"), "UTF-16"),
    (re.compile(rb"\xfe\xff|(?:\0[\t\n\r -~]){2}"), "UTF-16 (big-endian)"),
]
_SAVE_AS_UTF8 = (
    "In PowerShell: `Get-Content in.jsonl | Set-Content -Encoding utf8 out.jsonl`; elsewhere:"
    " `iconv -f UTF-16 -t UTF-8 in.jsonl > out.jsonl`; in an editor: Save as UTF-8."
)
_BEFORE = re.compile(rb"\A(?:\xef\xbb\xbf|\s)+")
_document = msgspec.json.Decoder().decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# The first key of a record that lies in a list under one of WRAPPERS, in a file without a line's end.
_WRAPPED = re.compile(
    rb'\{\s*"(%s)"\s*:\s*\[\s*\{\s*"(messages|prompt|instruction|conversations|question|completion)"'
    % "|".join(WRAPPERS).encode()
)


def foreign_file(head: bytes, name: str) -> Foreign | None:
    """What a file is, by its first bytes and its name, when it is not JSON Lines; None when it is or may be.

    ``head``: the first HEAD bytes, or the whole file when it is shorter. ``name``: the file's, with or without its
    folder. For a packed file call twice: with the packed bytes and ``train.jsonl.gz``, then with the unpacked ones and
    ``train.jsonl``. A file of JSON objects is never foreign here, whatever its name; each record is told by itself.
    """
    packed = foreign_packing(head, name)
    if packed or head.startswith(GZIP):
        return packed
    if not head.removeprefix(BOM).strip():
        return _empty(head)
    for pattern, encoding in ENCODINGS:
        if pattern.match(head):
            return Foreign("wrong_encoding", f"The file is {encoding}, not UTF-8.", _SAVE_AS_UTF8, 0)
    if binary := foreign_binary(head, name):
        return binary
    text = _BEFORE.sub(b"", head, 1)
    if found := _json(text, len(head) < HEAD, name):
        return found
    return None if text.startswith(b"{") else unknown_binary(head) or foreign_text(text, name)


def foreign_packing(head: bytes, name: str) -> Foreign | None:
    """A gzip file that is not called so, or the other way round."""
    file = PurePosixPath(name).name or "train.jsonl"
    lower = file.lower()
    if head.startswith(GZIP):
        if lower.endswith((".tar.gz", ".tgz")):
            return Foreign("not_json_lines", "This is a tar archive, not JSON Lines.", UNPACK, 0)
        if lower.endswith(".gz"):
            return None
        return Foreign(
            "not_json_lines", "This is a gzip file, and its name does not say so.", f"Name it {file}.gz and drop it.", 0
        )
    if not lower.endswith(".gz") or not head:
        return None
    return foreign_file(head, file[:-3]) or Foreign(
        "broken_gzip",
        "The file is called .gz and is not packed with gzip.",
        f"Name it {file[:-3]}; or pack it: `gzip {file[:-3]}`.",
        0,
    )


def _empty(head: bytes) -> Foreign | None:
    if len(head) >= HEAD:
        return None  # white space so far
    held = "nothing" if not head else "blank lines only" if head.removeprefix(BOM) else "a byte-order mark only"
    return Foreign("empty_file", f"The file holds {held}.", f"Export it again. {SHAPE}", 0)


def _json(text: bytes, whole: bool, name: str) -> Foreign | None:
    """One JSON document (or several) over many lines, which is the commonest thing to be dropped."""
    first, ended, rest = text.partition(b"\n")
    first = first.strip()
    if first.startswith(b"["):
        return _array(first, ended + rest, whole, name)
    if not first.startswith(b"{"):
        return None
    try:
        keys = set(_object(first))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if ended:
            return _spread(first, rest)
        wrapped = _WRAPPED.match(first)
        return _wrapper(wrapped[1].decode()) if wrapped else None
    if {"nbformat", "cells"} <= keys and not keys.intersection(OURS):
        return NOTEBOOK
    return None


def _array(first: bytes, rest: bytes, whole: bool, name: str) -> Foreign | None:
    """A JSON array; None when each line is one, which is told line by line."""
    if not re.match(rb"\[\s*([\[{\"'\]]|$)", first):
        return None  # a section of TOML, a date of a log, a list of numbers
    if re.match(rb"\[\s*(\{\s*)?'", first):
        return PYTHON
    try:
        _document(first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        lines = rest.split(b"\n", 3)[1:3]
        listed = re.match(rb'\[\s*\{\s*"(role|from|content)"', first) and (rest.strip() or not whole)
        if listed and all(line.lstrip().startswith(b"[") for line in lines):
            return None
    else:
        if first == b"[]" and not rest.strip():
            return Foreign("empty_file", "The file holds an empty list.", f"Export it again. {SHAPE}")
        if rest.strip() or re.match(rb'\[\s*(\{\s*"(role|from|content|value)"|"|\[)', first):
            return None  # each line is a list, or the only one is a conversation
    return Foreign(
        "not_json_lines",
        "This is one JSON array, not JSON Lines.",
        "Write one record a line. With jq: `jq -c '.[]' in.json > out.jsonl`. Or convert it: "
        + prepare_named(name, ".jsonl", ".json"),
    )


def _spread(first: bytes, rest: bytes) -> Foreign | None:
    """An object that begins on the first line and does not end there."""
    if first.startswith(b"{\\rtf"):
        return None
    following = rest.lstrip()[:4096]
    if re.match(rb"\{\s*'", first) or (first == b"{" and following.startswith(b"'")):
        return PYTHON
    if first == b"{" and re.match(rb"//|/\*|[A-Za-z_$][\w$]*\s*:", following):
        return Foreign(
            "not_json_lines",
            "This is JavaScript or JSON5 notation: keys without quotes or comments, over many lines.",
            "Put keys and texts into double quotes, drop comments, and write one record a line. " + SHAPE,
        )
    if re.search(rb'"nbformat"|"cell_type"\s*:', first + following) and b'"cells"' in first + following:
        return NOTEBOOK
    if not (first == b"{" or _continues(first, rest)):
        return None
    wrapper = re.match(rb'\{\s*"(%s)"\s*:\s*\[' % "|".join(WRAPPERS).encode(), first + b" " + following)
    if wrapper:
        return _wrapper(wrapper[1].decode())
    return Foreign(
        "not_json_lines",
        "This is JSON spread over many lines (pretty-printed), not JSON Lines.",
        "Write each record on one line. With jq: `jq -c '.' in.json > out.jsonl`.",
    )


def _continues(first: bytes, rest: bytes) -> bool:
    """Whether the second line goes on where the first one ended, and is not just the next record after a cut one."""
    second = rest.lstrip().partition(b"\n")[0].strip()
    if not second:
        return False
    try:
        _object(second)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return first.endswith((b"{", b"[", b",", b":")) and second[:1] in b'"{[]}' and not second.startswith(b'{"')
    return first.endswith(b"[")


def _wrapper(key: str) -> Foreign:
    program = ".rows[].row" if key == "rows" else f".{key}[]"
    return Foreign(
        "not_json_lines",
        f"This is one JSON object that holds all records in a list, `{key}`.",
        f"Write one record a line. {jq(program)}",
    )


NOTEBOOK = Foreign(
    "not_json_lines",
    "This is a Jupyter notebook, not the data that it works on.",
    "Export the data from the notebook: `df.to_json('out.jsonl', orient='records', lines=True, force_ascii=False)`.",
)
PYTHON = Foreign(
    "not_json_lines",
    "This is a list or dict as Python prints it (single quotes), not JSON.",
    "In Python write it with `for r in records: file.write(json.dumps(r, ensure_ascii=False) + '\\n')`.",
)
