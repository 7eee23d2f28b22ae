"""Files that are something else as a whole."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .build import GOOD, MARKER, Broken, chat, lines

M = MARKER.encode()
RECORDS = [chat(f"{MARKER}?", f"{MARKER}!"), *(json.loads(line) for line in GOOD)]
JSONL = lines(*(json.dumps(record).encode() for record in RECORDS))
ARRAY = json.dumps(RECORDS).encode()


def _zip(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member, f"<x>{MARKER}</x>" * 20)
    return buffer.getvalue()


def _tar(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        member = tarfile.TarInfo("train.jsonl")
        member.size = len(JSONL)
        archive.addfile(member, io.BytesIO(JSONL))
    return buffer.getvalue()


def _sqlite() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "x.db")
        connection = sqlite3.connect(path)
        connection.execute("create table chats (text)")
        connection.execute("insert into chats values (?)", [MARKER])
        connection.commit()
        connection.close()
        return path.read_bytes()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([MARKER]))
    return buffer.getvalue()


def _not_json_lines(name: str, content: bytes, says: str, line: int = 0) -> Broken:
    return Broken(name, content, "not_json_lines", line, says)


def _encoded(name: str, content: bytes, says: str) -> Broken:
    return Broken(name, content, "wrong_encoding", 0, says)


_OFFICE = ("[Content_Types].xml", "_rels/.rels")
_SAFETENSORS = json.dumps({MARKER: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
_NOTEBOOK = {"cells": [{"cell_type": "code", "source": [MARKER]}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
_COLUMNS = f'question,answer\n"What, {MARKER}?",{MARKER}\nWhere?,Here\n'
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500)

FILES = [
    # JSON, but not line by line
    _not_json_lines("array.jsonl", ARRAY, "jq -c '.[]' in.json > out.jsonl", 1),
    _not_json_lines("pretty-array.jsonl", json.dumps(RECORDS, indent=2).encode(), "JSON array", 1),
    _not_json_lines("array-a-line-each.jsonl", ARRAY.replace(b"}, {", b"},\n{"), "JSON array", 1),
    _not_json_lines("pretty-object.jsonl", json.dumps(RECORDS[0], indent=4).encode(), "jq -c '.'", 1),
    _not_json_lines(
        "pretty-objects.jsonl", b"\n".join(json.dumps(each, indent=2).encode() for each in RECORDS), "many lines", 1
    ),
    _not_json_lines("pretty-data.jsonl", json.dumps({"data": RECORDS}, indent=1).encode(), ".data[]", 1),
    _not_json_lines("notebook.jsonl", json.dumps(_NOTEBOOK, indent=1).encode(), "Jupyter notebook", 1),
    _not_json_lines("notebook-on-one-line.jsonl", json.dumps(_NOTEBOOK).encode(), "Jupyter notebook", 1),
    _not_json_lines("python-list.jsonl", str(RECORDS).encode(), "as Python prints it", 1),
    _not_json_lines("json5.jsonl", b"{\n  messages: [{role: 'user', content: '" + M + b"'}],\n}\n", "JSON5", 1),
    _not_json_lines("comment-first.jsonl", b"// examples of " + M + b"\n" + JSONL, "comment", 1),
    _not_json_lines("answer.jsonl", b"Here is your file:\n\n```json\n" + JSONL + b"```\n" + M + b"\n", "Markdown", 3),
    _not_json_lines("fenced.jsonl", b"```json\n" + JSONL + b"```\n", "Markdown", 1),
    # tables
    _not_json_lines("comma.csv", _COLUMNS.encode(), "prepare_dataset comma.csv", 1),
    _not_json_lines("comma.jsonl", _COLUMNS.encode(), "Rename it to comma.csv", 1),
    _not_json_lines("semicolon.jsonl", _COLUMNS.replace(",", ";").encode("utf-8-sig"), "semicolons", 1),
    _not_json_lines("tabs.jsonl", f"prompt\tcompletion\n{MARKER}\tyes\nno\tyes\n".encode(), "TSV", 1),
    _not_json_lines("one-column.jsonl", b"text\n" + M + b"\nAnd more\n", "one column", 1),
    _not_json_lines("no-header.jsonl", b'"Where, ' + M + b'?","Here."\n"And?","There."\n', "names the columns", 1),
    _not_json_lines("excel-sep.csv", b"sep=;\r\nprompt;completion\r\n" + M + b";b\r\n", "CSV", 1),
    _not_json_lines("book.xlsx", _zip(*_OFFICE, "xl/workbook.xml", "xl/worksheets/sheet1.xml"), "CSV UTF-8"),
    _not_json_lines("book.jsonl", _zip(*_OFFICE, "xl/workbook.xml"), "Excel workbook (.xlsx)"),
    _not_json_lines("old-book.xls", _OLE + "Workbook".encode("utf-16-le") + M, "old Excel workbook"),
    _not_json_lines("book.ods", _zip("mimetype", "content.xml"), "OpenDocument"),
    _not_json_lines("table.jsonl", b"PAR1\x15\x04\x15\x10" + M + b"PAR1", "Rename it to table.parquet"),
    _not_json_lines("table.parquet", b"PAR1\x15\x04\x15\x10" + M + b"PAR1", "Parquet"),
    _not_json_lines("table.feather", b"ARROW1\0\0\xff\xff\xff\xff" + M, "Arrow"),
    _not_json_lines("stream.arrow", b"\xff\xff\xff\xff\x70\x01\0\0" + M, "prepare_dataset stream.arrow"),
    _not_json_lines("table.orc", b"ORC\x0a\x0b" + M, "ORC"),
    _not_json_lines("table.avro", b"Obj\x01\x04\x14avro.codec" + M, "Avro"),
    _not_json_lines("table.h5", b"\x89HDF\r\n\x1a\n\0\0" + M, "HDF5"),
    _not_json_lines("table.db", _sqlite(), "SQLite"),
    # archives
    _not_json_lines("train.zip", _zip("train.jsonl"), "zip archive"),
    _not_json_lines("train.tar", _tar("w"), "tar archive"),
    _not_json_lines("train.tar.gz", _tar("w:gz"), "tar archive"),
    _not_json_lines("tar-inside.jsonl.gz", _tar("w:gz"), "tar archive"),
    _not_json_lines("packed.jsonl", gzip.compress(JSONL), "packed.jsonl.gz"),
    _not_json_lines("zip-called-gz.jsonl.gz", _zip("train.jsonl"), "zip archive"),
    _not_json_lines("packed.bz2", bz2.compress(JSONL), "bzip2"),
    _not_json_lines("packed.xz", lzma.compress(JSONL), "xz file"),
    _not_json_lines("packed.zst", b"\x28\xb5\x2f\xfd\x04\x58" + M, "Zstandard"),
    _not_json_lines("packed.7z", b"7z\xbc\xaf\x27\x1c\0\x04" + M, "7-Zip"),
    _not_json_lines("packed.rar", b"Rar!\x1a\x07\x01\0" + M, "RAR"),
    # programs' own
    _not_json_lines("records.pkl", pickle.dumps(RECORDS), "pickle"),
    _not_json_lines("model.pt", _zip("archive/data.pkl", "archive/data/0"), "PyTorch"),
    _not_json_lines(
        "model.safetensors", len(_SAFETENSORS).to_bytes(8, "little") + _SAFETENSORS + bytes(4), "safetensors"
    ),
    _not_json_lines("array.npy", _npy(), "NumPy"),
    _not_json_lines("zeros.jsonl", bytes(5000), "zero bytes"),
    _not_json_lines("noise.jsonl", bytes(range(1, 32)) * 30 + M, "binary"),
    # documents
    _not_json_lines("letter.docx", _zip(*_OFFICE, "word/document.xml"), "Word"),
    _not_json_lines("letter.doc", _OLE + "WordDocument".encode("utf-16-le") + M, "Word"),
    _not_json_lines("paper.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + M, "PDF"),
    _not_json_lines("letter.rtf", b"{\\rtf1\\ansi " + M + b"}\n", "RTF"),
    _not_json_lines("image.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + M, "image"),
    _not_json_lines("photo.jsonl", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + M, "image"),
    _not_json_lines("error.jsonl", b"<!DOCTYPE html>\n<html><title>404 " + M + b"</title></html>\n", "web page", 1),
    _not_json_lines("login.jsonl", b"<html><form>Sign in <b>" + M + b"</b></form></html>\n", "login page", 1),
    _not_json_lines("data.xml", b'<?xml version="1.0"?>\n<chat>' + M + b"</chat>\n", "XML", 1),
    _not_json_lines("blob-error.jsonl", b'<?xml version="1.0"?><Error><Code>' + M + b"</Code></Error>", "error", 1),
    _not_json_lines(
        "pointer.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + M + b"\nsize 9\n",
        "git lfs pull",
        1,
    ),
    _not_json_lines("recipe.yml", b"base_model: " + M + b"\ntraining:\n  epochs: 3\n", "named recipe.yaml", 1),
    _not_json_lines("chats.jsonl", b"- messages:\n  - role: user\n    content: " + M + b"\n", "YAML", 1),
    _not_json_lines("settings.toml", b"[training]\nepochs = 3\nname = '" + M + b"'\n", "TOML", 1),
    _not_json_lines("script.jsonl", b"import json\n\nprint('" + M + b"')\n", "program", 1),
    _not_json_lines(
        "transcript.txt", b"User: " + M + b"?\nAssistant: yes\nUser: and\nAssistant: no\n", "who speaks", 1
    ),
    _not_json_lines("mail.jsonl", b"From: a@" + M + b"\nTo: b\nSubject: c\n\nHello\n", "e-mail", 1),
    _not_json_lines("template.jsonl", b"<s>[INST] " + M + b" [/INST] Yes. </s>\n", "template", 1),
    _not_json_lines(
        "commas.jsonl", b"Hello, this is all that I know about it, " + M + b"\nand, more\n", "plain text", 1
    ),
    _not_json_lines("prose.jsonl", b"Dear colleagues, this is about " + M + b".\nIt is text.\n", "plain text", 1),
    # encodings, and nothing at all
    _encoded("utf-16.jsonl", JSONL.decode().encode("utf-16"), "Set-Content -Encoding utf8"),
    _encoded("utf-16-be.jsonl", b"\xfe\xff" + JSONL.decode().encode("utf-16-be"), "UTF-16"),
    _encoded("utf-16-no-bom.jsonl", JSONL.decode().encode("utf-16-le"), "UTF-16"),
    _encoded("utf-16-be-no-bom.jsonl", JSONL.decode().encode("utf-16-be"), "UTF-16"),
    _encoded("utf-32.jsonl", JSONL.decode().encode("utf-32"), "UTF-32"),
    Broken("empty.jsonl", b"", "empty_file", 0, "holds nothing"),
    Broken("blank.jsonl", b" \r\n\r\n\t\n", "empty_file", 0, "blank lines"),
    Broken("only-a-bom.jsonl", b"\xef\xbb\xbf", "empty_file", 0, "byte-order mark"),
    Broken("empty-list.jsonl", b"[]", "empty_file", 1, "empty list"),
    Broken("not-packed.jsonl.gz", JSONL, "broken_gzip", 0, "not packed"),
]
