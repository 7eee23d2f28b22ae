"""Text files that are not JSON: tables, pages, documents, settings, prose."""

import re
from pathlib import PurePosixPath

from .foreign import SHAPE, Foreign, prepare, prepare_named

LINES = 50  # the first ones, which tell what a file is
_COLUMN = re.compile(r"[^\W\d_][\w.\-/()]{0,39}+( [\w.\-/()]{1,40}+){0,3}")  # how a table's columns are called
_OURS = {"messages", "prompt", "completion", "text", "question", "answer", "instruction", "output", "response"}
NO_HEADER = "Add a first line with the columns' names (prompt,completion). "
_QUOTED_ROW = re.compile(r'"(?:[^"]|"")*+"[,;\t]"')
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
        (
            r"<\?xml|<!doctype (?!html)|<(svg|rss|feed|xml|[a-z]+:)",
            "XML",
            f"Write each example as a line of JSON. {SHAPE}",
        ),
        (r"\{\\rtf", "a rich text (RTF) document", f"Save it as plain text. {prepare('in.txt')}"),
        (
            r"<\||<s>|\[INST\]|### (instruction|human|user|system)",
            "a conversation with a model's chat template applied to it already",
            f"Write the messages themselves; the template is applied in training. {SHAPE}",
        ),
        (
            r"(from|to|date|subject|received|return-path|delivered-to|mime-version): \S",
            "an e-mail",
            f"Write what is to be learnt as examples. {SHAPE}",
        ),
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
_LITERAL = re.compile(
    r"""[{\]}]|\[[\s"'\[{\]\d]|"(?:[^"\\]|\\.)*+"\s*(:|$)|"\{|b?'\{|(data|event):|-?\d[\d.]*$|(true|false|null)$"""
)
_COMMENT = re.compile(r"\s*(?:(?://|#)[^\n]*\n\s*|/\*(?:[^*]|\*(?!/))*+\*/\s*)+(?=[{\[])")


def foreign_text(head: bytes, name: str) -> Foreign | None:
    """What a text is that begins with ``head`` (white space left out) and not with JSON; None for what may be JSON.

    A broken line in a file of JSON objects is not told here but by ``foreign_line``, so None as well.
    """
    text = head.decode("utf-8", "replace")
    rows = re.split(r"\r\n|\n|\r", text, maxsplit=LINES)[:LINES]
    lines = [line.strip() for line in rows if line.strip()]
    ending = PurePosixPath(name).suffix.lower()
    if not lines:
        return None  # white space of Unicode's
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
    objects = sum(line.startswith("{") for line in lines)
    fences = [number for number, line in enumerate(rows, 1) if line.lstrip().startswith("```")]
    if fences and not lines[0].startswith("{"):
        return _markdown(fences[0])
    if objects * 2 >= len(lines) or _literal(lines[0]):
        return None
    return _table(lines, ending, name) or _settings(text, lines, ending) or _prose(lines, name)


def _is(what: str, fix: str) -> Foreign:
    return Foreign("not_json_lines", f"This is {what}, not JSON Lines.", fix)


def _literal(line: str) -> bool:
    """What may be a line of JSON, or the broken rest of one."""
    return bool(_LITERAL.match(line))


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
        return _csv("CSV", "Excel writes", name, ".csv", "Delete its first line (sep=…). ")
    counts = {separator: len(_fields(header, separator)) for separator in "\t;,|"}
    separator = max(counts, key=lambda each: counts[each])
    columns = counts[separator]
    if header.strip('"').lower() in _OURS and len(lines) > 1:
        return _csv("CSV of one column", "spreadsheets write", name, ".csv")
    if columns < 2 and ending not in (".csv", ".tsv"):
        return None
    named = all(_COLUMN.fullmatch(field) or not field for field in _fields(header, separator))
    if not named and _QUOTED_ROW.match(header):
        return _csv("CSV without a line that names the columns", "spreadsheets write", name, ".csv", NO_HEADER)
    even = len(lines) > 1 and any(_fields(line, separator)[columns - 1 :] for line in lines[1:4])
    known = _OURS.issuperset(field.lower() for field in _fields(header, separator))
    sentence = separator == "," and header.endswith((".", ":", "!", "?"))
    if ending not in (".csv", ".tsv") and (not named or sentence or not (even or '"' in "".join(lines[1:2]) or known)):
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


def _csv(what: str, who: str, name: str, ending: str, before: str = "") -> Foreign:
    command = prepare_named(name, ending, ".csv", ".tsv")
    return Foreign(
        "not_json_lines",
        f"This is {what}, as {who}, not JSON Lines.",
        f"{before}{command} For other columns than prompt and completion add"
        " `--columns prompt=COLUMN,completion=COLUMN`.",
    )


def _settings(text: str, lines: list[str], ending: str) -> Foreign | None:
    """YAML, TOML, and a chat written as `User: …` lines, which looks like YAML."""
    yaml = ending in (".yml", ".yaml") or lines[0].startswith(("- ", "---", "%YAML"))
    if not yaml and sum(bool(_SPEAKER.match(line)) for line in lines) * 3 >= len(lines):
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


def _prose(lines: list[str], name: str) -> Foreign | None:
    """Plain text; None when a JSON object comes soon, so that only the lines before it are to be told."""
    if any(line.startswith("{") for line in lines):
        return None
    if not any(character.isalpha() for line in lines for character in line):
        return None
    return Foreign(
        "not_json_lines",
        "This is plain text, not JSON Lines.",
        f"To train on the text as it is: {prepare_named(name, '.txt')} To teach answers, write pairs of question and"
        f" answer: {SHAPE}",
    )
