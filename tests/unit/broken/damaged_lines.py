"""Files of which one line is no JSON object."""

import json

from .build import MARKER, Broken, among_good, chat, dumps, lines

M = MARKER.encode()
RECORD = chat(f"{MARKER}?", f"{MARKER}!")
GOOD_LINE = dumps(RECORD)
PYTHON = repr(RECORD).encode()


def _line(name: str, line: bytes, says: str, code: str = "invalid_json") -> Broken:
    return Broken(f"{name}.jsonl", among_good(line), code, 4, says)


LINES = [
    _line("comma-at-the-end", GOOD_LINE + b",", "Remove the comma"),
    _line("semicolon-at-the-end", GOOD_LINE + b";", "Remove the comma"),
    _line("trailing-comma", GOOD_LINE[:-1] + b",}", "before a closing bracket"),
    _line("python-repr", PYTHON, "single quotes"),
    _line("python-inside", GOOD_LINE.replace(b'"user"', b"'user'"), "single quotes"),
    _line("python-none", GOOD_LINE[:-1] + b', "source": None}', "Python's spelling"),
    _line("python-true", GOOD_LINE[:-1] + b', "ok": True}', "Python's spelling"),
    _line("python-bytes", b"b'" + GOOD_LINE + b"'", "bytes"),
    _line("not-a-number", GOOD_LINE[:-1] + b', "score": NaN}', "NaN"),
    _line("infinity", GOOD_LINE[:-1] + b', "score": -Infinity}', "NaN"),
    _line("typographic-keys", GOOD_LINE.replace(b'"role"', "“role”".encode()), "Typographic"),
    _line("typographic-values", GOOD_LINE.replace(b'"user"', "“user”".encode()), "Typographic"),
    _line("excel-quotes", b'"' + GOOD_LINE.replace(b'"', b'""') + b'"', "csv.reader"),
    _line("encoded-twice", json.dumps(GOOD_LINE.decode()).encode(), "fromjson"),
    _line("escaped-quotes", GOOD_LINE.replace(b'"', b'\\"'), "level of escaping"),
    _line("two-objects", GOOD_LINE + GOOD_LINE, "More than one record"),
    _line("two-objects-comma", GOOD_LINE + b", " + GOOD_LINE, "More than one record"),
    _line("joined-files", GOOD_LINE + b"\xef\xbb\xbf" + GOOD_LINE, "joined"),
    _line("old-mac", GOOD_LINE + b"\r" + GOOD_LINE, "tr '\\r' '\\n'"),
    _line("bom-in-the-middle", b"\xef\xbb\xbf" + GOOD_LINE, "byte-order mark"),
    Broken("two-boms.jsonl", b"\xef\xbb\xbf" * 2 + among_good(GOOD_LINE), "invalid_json", 1, "byte-order mark"),
    _line("line-break-in-a-text", GOOD_LINE.replace(M, M + b"\n", 1), "within a text"),
    _line("tab-in-a-text", GOOD_LINE.replace(M, M + b"\t", 1), "tab"),
    _line("control-in-a-text", GOOD_LINE.replace(M, M + b"\x01", 1), "control character"),
    _line("invalid-escape", GOOD_LINE.replace(M, M + b"\\x41", 1), "Double the backslash"),
    _line("python-escape", GOOD_LINE.replace(M, M + b"\\'s", 1), "single quote"),
    _line("windows-path", GOOD_LINE.replace(M, b"C:\\Kunden\\" + M, 1), "Windows path"),
    _line("quote-in-a-text", GOOD_LINE.replace(M, b'the "' + M + b'" of', 1), "not escaped"),
    _line("missing-comma", GOOD_LINE.replace(b", ", b" ", 1), "comma is missing"),
    _line("half-an-emoji", GOOD_LINE.replace(M, M + b"\\ud83d", 1), "half a character"),
    _line("comment-line", b"// " + M, "comment"),
    _line("comment-after", GOOD_LINE + b" // " + M, "comment"),
    _line("comment-within", GOOD_LINE.replace(b", ", b", /* " + M + b" */ ", 1), "comment"),
    _line("unquoted-keys", GOOD_LINE.replace(b'"role"', b"role"), "double quotes"),
    _line("left-out", GOOD_LINE[:-2] + b", ...]}", "left out"),
    _line("fence", b"```", "Markdown"),
    _line("event-stream", b"data: " + GOOD_LINE, "sed"),
    _line("log-prefix", b"2026-01-02 12:00:01 INFO " + GOOD_LINE, "before the object"),
    _line("merge-conflict", b"<<<<<<< HEAD " + M, "merge conflict"),
    _line("heading", b"Part two: " + M, "no JSON"),
    _line("wrong-bracket", GOOD_LINE.replace(b"]", b"}"), "bracket"),
    _line("extra-bracket", GOOD_LINE + b"]", "bracket"),
    _line("utf-16-appended", GOOD_LINE.decode().encode("utf-16-be"), "UTF-16"),
    _line("bare-messages", dumps(RECORD["messages"]), "{messages: .}", "other_format"),
    _line("bare-pair", dumps([f"{MARKER}?", "yes"]), "{prompt: .[0], completion: .[1]}", "other_format"),
    _line("bare-text", dumps(f"All about {MARKER}."), "{text: .}"),
    _line("bare-number", b"42", "number"),
    _line("null", b"null", "number or a single word"),
    _line("deep", b'{"messages": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested"),
    Broken("pretty-in-the-middle.jsonl", among_good(*json.dumps(RECORD, indent=1).encode().split(b"\n")),
           "invalid_json", 4, "jq -c '.'"),
    Broken("cut.jsonl", lines(*([GOOD_LINE] * 10)) + GOOD_LINE[:40], "invalid_json", 11, "ends in the middle"),
    Broken("cut-in-a-text.jsonl", lines(*([GOOD_LINE] * 10)) + GOOD_LINE[:50], "invalid_json", 11, "within a text"),
]  # fmt: skip
