"""Files, lines and records of other formats are named, with a fix that works; ours never are."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from broken import CORPUS, FILES, LINES, MARKER, RECORDS, Broken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from function_app.dataset.codes import CODES
from function_app.dataset.formats import (
    HEAD,
    Foreign,
    foreign_file,
    foreign_line,
    foreign_message,
    foreign_record,
    json_column,
)

COMMAND = re.compile(r"`((?:jq|sed|tr|python -c)\b[^`]* out\.jsonl)`")
NEEDS_JQ = pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")


def told(broken: Broken) -> Foreign | None:
    """What the functions say of a file: of it as a whole, else of the first line that they know."""
    name, content = broken.name, broken.content
    whole = foreign_file(content[:HEAD], name)
    if whole is None and name.endswith(".gz"):
        name, content = name.removesuffix(".gz"), gzip.decompress(content)
        whole = foreign_file(content[:HEAD], name)
    if whole:
        return whole
    for number, line in enumerate(content.split(b"\n"), 1):
        found = foreign_line(line, number) if line.strip() else None
        if found is None and line.strip():
            record = json.loads(line)
            found = foreign_record(record.keys(), record)
            found = found and Foreign(found.code, found.message, found.fix, number, found.path)
        if found:
            return found
    return None


@pytest.mark.parametrize("broken", [*FILES, *LINES, *RECORDS], ids=lambda broken: broken.name)
def test_a_foreign_file_is_named_with_its_place_and_its_fix(broken: Broken) -> None:
    found = told(broken)
    assert found is not None
    assert (found.code, found.line) == (broken.code, broken.line), found
    assert broken.says.lower() in f"{found.message} {found.fix}".lower()


@pytest.mark.parametrize("broken", [*FILES, *LINES, *RECORDS], ids=lambda broken: broken.name)
def test_no_finding_repeats_what_is_in_the_file(broken: Broken) -> None:
    for line in [broken.content, *broken.content.split(b"\n")]:
        assert MARKER.lower() not in repr(foreign_file(line, broken.name)).lower()
        assert MARKER.lower() not in repr(foreign_line(line, 2)).lower()
    assert MARKER.lower() not in repr(told(broken)).lower()


def test_the_corpus_covers_every_code_that_one_file_can_cause() -> None:
    elsewhere = {"wrong_place", "invalid_recipe", "empty_eval", "eval_overlap", "eval_near_overlap"}
    by_recipe_or_size = {"too_long", "truncated", "maybe_too_long", "too_large"}
    assert {broken.code for broken in CORPUS} == set(CODES) - elsewhere - by_recipe_or_size
    assert len({broken.name for broken in CORPUS}) == len(CORPUS)


def test_a_message_is_sentences_and_the_code_exists() -> None:
    for broken in [*FILES, *LINES, *RECORDS]:
        found = told(broken)
        assert found is not None
        assert found.code in CODES
        assert found.message.endswith((".", "?"))
        assert found.fix.endswith((".", "…"))
        assert found.fix.count("`") % 2 == 0 or "```" in found.fix


# --- ours


KEYS = st.sampled_from(["messages", "prompt", "completion", "text", "instruction", "data", "cells", "id"]) | st.text()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.lists(st.dictionaries(KEYS, VALUES, min_size=1), min_size=1, max_size=4)


@settings(max_examples=60)
@given(
    records=OBJECTS,
    indent=st.sampled_from([b"", b" ", b"\t", b"\n", b"\r\n\r\n"]),
    end=st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"]),
    bom=st.booleans(),
    ascii_only=st.booleans(),
    name=st.sampled_from(["train.jsonl", "train.csv", "recipe.yml", "x.txt", "x.tsv", ""]),
)
def test_a_file_of_objects_is_never_foreign(
    records: list[Any], indent: bytes, end: bytes, bom: bool, ascii_only: bool, name: str
) -> None:
    each = [json.dumps(record, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for record in records]
    content = b"\xef\xbb\xbf" * bom + b"".join(indent + line + end for line in each)
    found = foreign_file(content, name)
    keys = set(records[0])
    if not {"cells", "nbformat"} <= keys:
        assert found is None
        assert foreign_file(content.rstrip(), name) is None
    for number, line in enumerate(each, 2):
        assert foreign_line(line, number) is None


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]},
        {"messages": [{"role": "system", "content": "s"}], "system": "again", "tools": [], "id": 1},
        {"prompt": "a", "completion": "b", "label": "greeting"},
        {"text": "a", "label": 1},
        {"instruction": "i", "input": "", "output": "o", "text": "all of it"},
        {"something": "else"},
    ],
)
def test_a_record_of_ours_or_of_nobody_is_not_foreign(record: dict[str, Any]) -> None:
    assert foreign_record(record.keys(), record) is None


def test_a_long_first_line_is_no_reason_to_refuse() -> None:
    for start in (b'{"messages": [{"role": "user", "content": "', b'{"data": [{"id": 1}], "messages": [', b'{"x": "'):
        assert foreign_file((start + b"y" * HEAD)[:HEAD], "train.jsonl") is None
    assert foreign_file(b" " * HEAD, "train.jsonl") is None
    wrapped = foreign_file((b'{"data": [{"messages": [' + b" " * HEAD)[:HEAD], "train.jsonl")
    assert wrapped is not None
    assert ".data[]" in wrapped.fix


def test_a_damaged_first_line_is_told_as_a_line() -> None:
    good = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    for first in (
        good[:30] + b"\n",
        good[:42] + b"\n",
        good.replace(b"}]}", b"}]},"),
        b"log started\n",
    ):
        assert foreign_file(first + good * 3, "train.jsonl") is None
        assert foreign_line(first, 1) is not None


def test_a_bare_list_of_messages_a_line_is_told_by_line() -> None:
    line = b'[{"role": "user", "content": "a"}]\n'
    assert foreign_file(line * 3, "train.jsonl") is None
    assert foreign_file(line, "train.jsonl") is None


# --- any bytes

PIECES = [
    b'{"messages": [',
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b"'",
    b",",
    b":",
    b"\n",
    b"\xef\xbb\xbf",
    b"\x00",
    b"a",
]
BYTES = st.binary(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


@settings(max_examples=300)
@given(BYTES | st.sampled_from([broken.content for broken in CORPUS]), st.integers(1, 9), st.text(max_size=12))
@example(b"\xef\xbb\xbf", 1, "")
@example("\u3000\x1e\u2028".encode(), 1, "")
@example(b'"', 2, "a.gz")
@example(b'{"a":"\\', 2, "/")
def test_any_bytes_are_answered(content: bytes, number: int, name: str) -> None:
    for file in (name, "..", "x.jsonl.gz", "x.csv", "x.xlsx"):
        found = foreign_file(content[:HEAD], file)
        assert found is None or found.code in CODES
    line = foreign_line(content, number)
    assert line is None or (line.line == number and line.code in CODES)
    assert 1 <= json_column(content, number) <= number + 1


@given(
    st.dictionaries(
        st.sampled_from([*"abc", *(k for b in RECORDS for k in json.loads(b.content.split(b"\n")[0]))]), VALUES
    )
)
def test_any_object_is_answered(record: dict[str, Any]) -> None:
    alone, whole = foreign_record(record.keys(), None), foreign_record(record.keys(), record)
    for found in (alone, whole, foreign_message(record)):
        assert found is None or found.code in CODES


@pytest.mark.parametrize(
    "piece", [b'"\\"', b"{'", b'{"a":', b'"a" ', b"//", b"\\", b'"", ', b"/*", b"/**", b"#\n", b"```\n", b"- ", b"a,"]
)
def test_the_work_on_a_hostile_line_is_bounded(piece: bytes) -> None:
    """Quadratic work on these would take minutes."""
    line = piece * (4_000_000 // len(piece))
    foreign_line(line, 1)
    foreign_line(b'{"a": "' + line, 2)
    foreign_file(line[:HEAD], "x.jsonl")
    foreign_file((b"{\n" + line)[:HEAD], "x.jsonl")


# --- the fixes


@NEEDS_JQ
@pytest.mark.parametrize("broken", [*FILES, *LINES, *RECORDS], ids=lambda broken: broken.name)
def test_the_command_of_a_fix_does_what_it_says(broken: Broken, tmp_path: Path) -> None:
    found = told(broken)
    assert found is not None
    content = broken.content
    if broken in LINES and not broken.name.startswith("pretty"):
        content = content.split(b"\n")[found.line - 1] + b"\n"
    for command in COMMAND.findall(found.fix) if not broken.name.startswith("cut") else ():
        for name in ("in.jsonl", "in.json"):
            (tmp_path / name).write_bytes(content)
        _shell(command, tmp_path)
        records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
        assert records or "Leave such records out" in found.fix
        for record in records:
            again = foreign_record(record.keys(), record)
            # Some need two rounds: an object unwrapped or a name mended shows what else there is.
            assert again is None or (again.code, again.message) != (found.code, found.message)
            assert {"messages", "text"} & record.keys() or {"prompt", "completion"} <= record.keys() or again
            for message in () if again else record.get("messages", ()):
                assert isinstance(message["content"], str)
                assert message["role"] in ("system", "user", "assistant")
        content = (tmp_path / "out.jsonl").read_bytes()


def _shell(command: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env={"PATH": path}, capture_output=True, timeout=20)
    assert done.returncode == 0, (command, done.stderr)


# --- columns


def test_a_column_counts_characters() -> None:
    line = '{"ä": "漢字", x}'.encode()
    assert json_column(line, line.index(b"x")) == len('{"ä": "漢字", x')
    assert json_column(line, line.index("字".encode()) + 1) == len('{"ä": "漢字')
    assert json_column(b"\xff\xfe{", 2) == 3
    assert json_column(b"", 5) == 1
    assert json_column(b"ab", -4) == 1


def test_the_packed_files_of_the_corpus_are_damaged_as_they_claim() -> None:
    for broken in CORPUS:
        if broken.code == "broken_gzip" and broken.content.startswith(b"\x1f\x8b"):
            with pytest.raises((EOFError, gzip.BadGzipFile, zlib.error)):
                gzip.decompress(broken.content)
