"""Text files that are not JSON: tables, pages, documents, settings, prose."""

import re
from pathlib import PurePosixPath

from .foreign import SHAPE, Foreign, prepare

LINES = 50  # the first ones, which tell what a file is
_COLUMN = re.compile(r"[^\W\d_][\w .\-/()]{0,39}")  # how a table's columns are called
_SPEAKER = re.compile(r"(user|assistant|human|ai|bot|system|q|a|question|answer|prompt|completion|response)\s*:", re.I)
_SETTING = re.compile(r"\s*(- )?['\"]?[\w.-]+['\"]?\s*:(\s|$)|\s*- ")
_RECIPE = re.compile(r"^(base_model|method|training|evaluation|compute|preset)\s*:", re.M)

# (how the text begins, what it is, the fix)
STARTS: list[tuple[re.Pattern[str], str, str]] = [
    (re.compile(pattern, re.IGNORECASE), what, fix)
    for pattern, what, fix in [
        (
            r"version https://git-lfs",
            "a Git LFS pointer: the name of a file that Git keeps elsewhere, not the file",
            "In the repository run `git lfs pull`, then drop the file again.",
        ),
        (
            r"(oid sha256:|size \d+\n)",
            "a piece of a Git LFS pointer",
            "In the repository run `git lfs pull`, then drop the file again.",
        ),
        (
            r"HTTP/\d",
            "a server's answer with its headers",
            "Download the file again without the headers (`curl -L -o train.jsonl URL`, without -i).",
        ),
        (
            r"<\?xml[^>]*>\s*<error|<error>",
            "a storage service's error message (XML), downloaded in place of the file",
            "Download the file again with a link that is still valid.",
        ),
        (r"<\?xml|<!doctype (?!html)", "XML", f"Write each example as a line of JSON. {SHAPE}"),
        (r"\{\\rtf", "a rich text (RTF) document", f"Save it as plain text. {prepare('in.txt')}"),
        (r"(diff --git|--- a/)", "a patch", "Apply it, and drop the file that it is for."),
        (r"-----BEGIN ", "a key or certificate", "Drop the .jsonl file in its place, and delete this copy."),
        (
            r"#!|import [\w.]+( as \w+)?\s*\n|from [\w.]+ import |def \w+\(|export default|module\.exports"
            r"|(const|let|var) \w+\s*=",
            "a program",
            "Run it, and drop the .jsonl file that it writes.",
        ),
    ]
]
_HTML = re.compile(r"<(!doctype html|html|head|body|script|!--|div|meta)", re.I)
_LOGIN = re.compile(r"log ?in|sign ?in|password", re.I)
_COMMENT = re.compile(r"\s*(?:(?://|#)[^\n]*\n\s*|/\*(?:[^*]|\*(?!/))*+\*/\s*)+(?=[{\[])")


def foreign_text(head: bytes, name: str) -> Foreign | None:
    """What a text is that begins with ``head`` (white space left out) and not with JSON; None for what may be JSON.

    A broken line in a file of JSON objects is not told here but by ``foreign_line``, so None as well.
    """
    text = head.decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines()[:LINES] if line.strip()]
    ending = PurePosixPath(name).suffix.lower()
    for pattern, what, fix in STARTS:
        if pattern.match(text):
            return _is(what, fix)
    if _HTML.match(text):
        return _page(text)
    if comment := _COMMENT.match(text):
        return Foreign(
            "not_json_lines",
            "The file begins with a comment; JSON has none.",
            f"Delete the comments (the first {comment[0].count(chr(10)) or 1} lines). {SHAPE}",
        )
    for number, line in enumerate(text.splitlines()[:LINES], 1):
        if line.lstrip().startswith("```") and not any(line.lstrip().startswith("{") for line in lines[:1]):
            return _markdown(number)
    objects = sum(line.startswith("{") for line in lines)
    if objects * 2 >= len(lines) or _literal(lines[0]):
        return None
    return _table(lines, ending, name) or _settings(text, lines, ending) or _prose(lines, ending, name)


def _is(what: str, fix: str) -> Foreign:
    return Foreign("not_json_lines", f"This is {what}, not JSON Lines.", fix)


def _literal(line: str) -> bool:
    """What may be a line of JSON, or the broken rest of one."""
    return bool(re.match(r'[{\]}]|\[[\s"\'\[{\]\d]|"[^"]*":|"\{|(data|event):|[\d.-]+$|(true|false|null)$', line))


def _page(text: str) -> Foreign:
    what = "a login page" if _LOGIN.search(text) else "a web page (HTML), perhaps an error message"
    return Foreign(
        "not_json_lines",
        f"This is {what} that was downloaded in place of the file.",
        "Open the link in a browser, sign in, and download the file itself (GitHub: Raw; Hugging Face: download).",
    )


def _markdown(number: int) -> Foreign:
    return Foreign(
        "not_json_lines",
        "This is Markdown with a block of code, as an assistant answers in a chat.",
        "Keep only the lines between the two ``` lines, one record a line. " + SHAPE,
        number,
    )


def _table(lines: list[str], ending: str, name: str) -> Foreign | None:
    """CSV and its relatives: the first line names columns, the second has as many separators."""
    header = lines[0].removeprefix("\ufeff")
    if header.lower().startswith("sep="):
        return _csv("CSV", "Excel writes", name, ".csv")
    counts = {separator: len(_fields(header, separator)) for separator in "\t;,|"}
    separator = max(counts, key=lambda each: counts[each])
    columns = counts[separator]
    if columns < 2 and ending not in (".csv", ".tsv"):
        return None
    named = all(_COLUMN.fullmatch(field) or not field for field in _fields(header, separator))
    even = len(lines) > 1 and any(_fields(line, separator)[columns - 1 :] for line in lines[1:4])
    sentence = separator == "," and header.endswith((".", ":", "!", "?"))
    if ending not in (".csv", ".tsv") and (not named or sentence or not (even or '"' in "".join(lines[1:2]))):
        return None
    match separator:
        case "\t":
            return _csv("a table with tabs between the columns (TSV)", "spreadsheets copy", name, ".tsv")
        case ";":
            return _csv("CSV with semicolons", "Excel writes in much of Europe", name, ".csv")
        case "|":
            return _csv("a table with | between the columns", "databases print", name, ".csv")
        case _:
            return _csv("CSV", "spreadsheets write", name, ".csv")


def _fields(line: str, separator: str) -> list[str]:
    """The fields of a table's row, roughly: separators within quotes do not count."""
    pieces = re.sub(r'"[^"]*"', lambda quoted: quoted[0][1:-1].replace(separator, " "), line)
    return [field.strip() for field in pieces.split(separator)]


def _csv(what: str, who: str, name: str, ending: str) -> Foreign:
    path = PurePosixPath(PurePosixPath(name).name or "in")
    own = path.suffix.lower() in (".csv", ".tsv")
    renamed = path.name if own else path.stem + ending
    first = "" if own else f"Rename it to {renamed}. "
    return Foreign(
        "not_json_lines",
        f"This is {what}, as {who}, not JSON Lines.",
        f"{first}{prepare(renamed)} For other columns than prompt and completion add"
        " `--columns prompt=COLUMN,completion=COLUMN`.",
    )


def _settings(text: str, lines: list[str], ending: str) -> Foreign | None:
    """YAML, TOML, and a chat written as `User: …` lines, which looks like YAML."""
    if sum(bool(_SPEAKER.match(line)) for line in lines) * 3 >= len(lines) and ending not in (".yml", ".yaml"):
        return Foreign(
            "not_json_lines",
            "This is a conversation as plain text, with who speaks before each line.",
            f"Write each conversation as one line of JSON. {SHAPE}",
        )
    if _RECIPE.search(text) and ending in (".yml", ".yaml"):
        return _is("YAML, and looks like a recipe", "A recipe is read only when it is named recipe.yaml.")
    settings = sum(bool(_SETTING.match(line)) for line in lines)
    if ending in (".yml", ".yaml") or (len(lines) > 1 and (lines[0] == "---" or settings * 2 > len(lines))):
        return _is(
            "YAML",
            "If it is a recipe: a recipe is read only when it is named recipe.yaml. Examples are lines of JSON. "
            + SHAPE,
        )
    pairs = sum(bool(re.match(r"[\w.\-\"]+\s*=\s*\S|\[\[?[\w.\-\"]+\]\]?$|#", line)) for line in lines)
    if ending in (".toml", ".ini") or (pairs > 1 and pairs * 3 > len(lines) * 2):
        return _is(
            "TOML or an .ini file (settings)", f"Examples are lines of JSON, settings go to recipe.yaml. {SHAPE}"
        )
    return None


def _prose(lines: list[str], ending: str, name: str) -> Foreign | None:
    """Plain text; None when a JSON object comes soon, so that only the lines before it are to be told."""
    if any(line.startswith("{") for line in lines):
        return None
    if not any(character.isalpha() for character in lines[0]) and not any(
        character.isalpha() for line in lines for character in line
    ):
        return None
    stem = PurePosixPath(PurePosixPath(name).name or "in").stem
    renamed = PurePosixPath(name).name if ending == ".txt" else f"{stem}.txt"
    first = "" if ending == ".txt" else f"rename it to {renamed} and "
    return Foreign(
        "not_json_lines",
        "This is plain text, not JSON Lines.",
        f"To train on the text as it is, {first}{prepare(renamed).replace('Run', 'run')} To teach answers, write"
        " question and answer pairs: " + SHAPE,
    )
