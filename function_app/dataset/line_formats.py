"""Why a line is not one JSON object, as far as its bytes tell."""

import codecs
import re

import msgspec

from .foreign import DUMPS, ONE_LINE, SHAPE, Foreign, invalid, jq
from .line_starts import line_start

LOOK = 64 * 1024  # bytes of a line that are looked at, beside the parser's own pass
NEAR = 64  # bytes around the place where the parser stopped


_skim = msgspec.json.Decoder(msgspec.Raw).decode  # checks the structure and builds nothing
_document = msgspec.json.Decoder().decode
_byte = re.compile(r"\(byte (\d+)\)")
# Matches to the end of the line whatever is in it, so it never goes back: the last group is empty in an open string.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_CURLY = ("“", "”", "„", "‟", "«", "»", "‘", "’", "‚", "＂", "″")
_TYPOGRAPHIC = tuple(quote.encode() for quote in _CURLY)


def foreign_line(line: bytes, number: int) -> Foreign | None:
    """Why ``line`` is not one JSON object; None when it is one, or cannot be told. Never raises.

    ``number`` counts from 1 and becomes the answer's ``line``. Time is linear in the line's length.
    """
    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    text = line.strip()
    if found := line_start(text[:LOOK]) or _parsed(text):
        return Foreign(found.code, found.message, found.fix, number)
    return None


def json_column(line: bytes, byte_offset: int) -> int:
    """The column, in characters from 1, of the byte at ``byte_offset`` (from 0) of ``line``; bad UTF-8 counts too."""
    before = codecs.getincrementaldecoder("utf-8")("replace").decode(line[: max(byte_offset, 0)])
    return len(before) + 1


def _parsed(text: bytes) -> Foreign | None:
    try:
        _skim(text)
    except RecursionError:
        return invalid("The record is nested too deeply.", SHAPE)
    except msgspec.DecodeError as error:
        reason, at = str(error), _byte.search(str(error))
        return _cut(text) if at is None else _at(text, reason, int(at[1]))
    return _value(text)


def _value(text: bytes) -> Foreign | None:
    """A line that is JSON in its structure, but no object, or one that still cannot be decoded."""
    first = text[:1]
    if first == b"{":
        return _surrogate(text)
    if first == b"[":
        return _list(text[:LOOK])
    if first == b'"':
        if re.match(rb'"\s*[{\[]\s*\\"', text):
            return invalid("The record is encoded twice: a text that holds JSON.", f"Decode it once. {jq('fromjson')}")
        return _bare("a text", f"If it is to be learnt as it is: {jq('{text: .}')}")
    return _bare("a number or a single word", f"Delete the line. {SHAPE}")


def _bare(what: str, fix: str) -> Foreign:
    return invalid(f"The line is {what}, not an object.", fix)


def _list(head: bytes) -> Foreign:
    if re.match(rb'\[\s*\{\s*"(role|content|name|weight)"', head):
        fix = jq("{messages: .}")
        return Foreign("other_format", "The line is a bare list of messages.", f"Put it under the key messages. {fix}")
    if re.match(rb'\[\s*\{\s*"(from|value)"', head):
        fix = f"{jq('{conversations: .}')} Then `python -m training.prepare_dataset out.jsonl --output out/`."
        return Foreign("other_format", "The line is a bare ShareGPT conversation.", fix)
    if re.match(rb'\[\s*"', head):
        fix = f"If it is a question and its answer: {jq('{prompt: .[0], completion: .[1]}')}"
        return Foreign("other_format", "The line is a list of texts, without names.", fix)
    return _bare("a list", f"Write one record a line. {jq('.[]')}")


def _surrogate(text: bytes) -> Foreign | None:
    head = text[:LOOK]
    if not re.search(rb"\\u[dD][89a-fA-F]", head):
        return None
    try:
        _document(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return HALF_CHARACTER
    return None


def _cut(text: bytes) -> Foreign | None:
    """The line ends before its value does."""
    if not text.startswith((b"{", b"[", b'"')):
        return invalid("The line is no JSON.", f"Delete the line, or write it as a record. {SHAPE}")
    if len(text) > LOOK:
        return CUT
    closed = True
    for string in _STRING.finditer(text):
        closed = bool(string[1])
    if not closed:
        return CUT_IN_TEXT
    # Half a character at the end of a text is taken for a cut line by the parser; there all brackets are closed.
    outside = _STRING.sub(b"", text)
    opened = sum(map(outside.count, (b"{", b"["))) - sum(map(outside.count, (b"}", b"]")))
    return CUT if opened else HALF_CHARACTER


def _at(text: bytes, reason: str, offset: int) -> Foreign | None:
    """What stands at the place where the parser stopped."""
    if "trailing characters" in reason:
        return _trailing(text, offset - 1)
    here, before = text[offset : offset + NEAR], text[max(0, offset - NEAR) : offset]
    if "hex escape" in reason or "surrogate" in reason:
        return HALF_CHARACTER
    if "escape" in reason:
        return _escape(before + here[:1])
    if "trailing comma" in reason:
        return invalid(
            "A comma stands before a closing bracket.", "Remove the comma after the last item. In Python, json.dumps."
        )
    if here[:1] < b" " and here:
        return _control(here[0])
    for pattern, what, fix in _WRONG:
        if pattern.match(here):
            return invalid(what, fix)
    if "expected ',' or" in reason:
        return _separator(here)
    if "expected '\"'" in reason and re.match(rb"[A-Za-z_$]", here):
        return invalid("A key has no quotes around it.", 'Put keys into double quotes: {"messages": …}. ' + DUMPS)
    if not text.startswith((b"{", b"[", b'"')):
        return _before(text)
    return None


def _trailing(text: bytes, offset: int) -> Foreign | None:
    """A value ends, and more follows."""
    rest = text[offset : offset + NEAR].strip()
    if not text.startswith((b"{", b"[")):
        if text.startswith(b'"') and re.match(rb"[,;\t]", rest):
            return invalid(
                "The line is a row of CSV.", "Convert it: `python -m training.prepare_dataset in.csv --output out/`."
            )
        return _before(text)
    if rest in (b",", b";"):
        return invalid(
            "A comma stands after the object, as between the items of a list.",
            "Remove the comma at the line's end: `sed 's/[,;][[:space:]]*$//' in.jsonl > out.jsonl`.",
        )
    if re.match(rb"(\xef\xbb\xbf|[\s,;|\x1e])*[{\[]", rest):
        if b"\r" in text[max(0, offset - 2) : offset + 3]:
            return invalid(
                "The lines end as on an old Mac (CR alone), so all records are on one line.",
                "Convert the line ends: `tr '\\r' '\\n' < in.jsonl > out.jsonl`.",
            )
        if rest.startswith(b"\xef\xbb\xbf"):
            return JOINED
        if rest.startswith(b","):
            fix = "Write each on a line of its own: `sed 's/^/[/; s/$/]/' in.jsonl | jq -c '.[]' > out.jsonl`."
            return invalid("More than one record stands on the line, with commas between.", fix)
        return invalid("More than one record stands on the line.", ONE_LINE)
    if re.match(rb"//|#|/\*", rest):
        return invalid("A comment follows the object; JSON has none.", "Delete the comment.")
    if re.match(rb"[,\s]*[\]}]", rest):
        return invalid("A bracket is closed that was not opened.", f"Remove the bracket after the object. {SHAPE}")
    return invalid("Something follows the object on its line.", "Keep the object alone on the line.")


def _before(text: bytes) -> Foreign | None:
    if text[:LOOK].find(b'{"') > 0:
        return invalid(
            "Something stands before the object (a date, a number or a log's prefix).",
            "Remove it: `sed 's/^[^{]*//' in.jsonl > out.jsonl`.",
        )
    return invalid("The line is no JSON.", f"Delete the line, or write it as a record. {SHAPE}")


def _control(byte: int) -> Foreign:
    name, written = {9: ("tab", "\\t"), 10: ("line break", "\\n"), 13: ("line break (CR)", "\\n")}.get(
        byte, ("control character", f"\\u{byte:04x}")
    )
    return invalid(f"A {name} stands within a text, unescaped.", f"Write it as {written}. {DUMPS}")


def _escape(before: bytes) -> Foreign:
    if before.endswith(b"\\'"):
        return invalid("A single quote has a backslash before it; JSON escapes only double quotes.", DUMPS)
    if re.search(rb"[A-Za-z]:\\[^\"]*$", before):
        return invalid(
            "A Windows path stands in a text with single backslashes.",
            "Double each backslash (C:\\\\folder), or write / in its place. " + DUMPS,
        )
    return invalid(
        "A backslash stands before a character that JSON cannot escape (as in \\x, LaTeX or a regular expression).",
        "Double the backslash. " + DUMPS,
    )


def _separator(here: bytes) -> Foreign:
    """A value is complete, and neither a comma nor the closing bracket follows."""
    if re.match(rb'["{\[]', here):
        return invalid("A comma is missing between two values, or a quote within a text is not escaped.", DUMPS)
    if re.match(rb"[}\]]", here):
        return invalid("A bracket is closed by one of the other kind.", f"Close [ with ] and {{ with }}. {SHAPE}")
    if re.match(rb"/[/*]", here):
        return invalid("A comment stands within the object; JSON has none.", "Delete the comment.")
    return invalid("A double quote within a text is not escaped.", 'Write it as \\". ' + DUMPS)


# (what stands where a value or a key should, what it is, the fix)
_WRONG: list[tuple[re.Pattern[bytes], str, str]] = [
    (re.compile(pattern), what, fix)
    for pattern, what, fix in [
        (
            b"|".join(_TYPOGRAPHIC),
            "Typographic quotes (“ ”) stand in place of straight ones, as a word processor or a chat writes.",
            'Replace the quotes that enclose keys and texts by ".',
        ),
        (rb"'", "A text stands in single quotes, as Python prints it.", DUMPS),
        (
            rb"(True|False|None)\b",
            "True, False or None is Python's spelling.",
            f"JSON spells true, false and null. {DUMPS}",
        ),
        (
            rb"(NaN|nan|an|Infinity|inf|undefined|NA|NULL)\b",  # the parser takes the n of nan for that of null
            "NaN, Infinity or undefined is no JSON value, as pandas and JavaScript write for a missing one.",
            "Leave such records out (pandas: `df.dropna()`), or write null.",
        ),
        (
            rb"\.\.\.|\xe2\x80\xa6",
            "`...` stands where something was left out.",
            "Write the record out in full, or leave it out.",
        ),
        (rb"//|/\*|#", "A comment stands within the object; JSON has none.", "Delete the comment."),
        (rb"\\", "A backslash stands outside a text: the record was encoded twice.", f"Decode it once. {DUMPS}"),
    ]
]
JOINED = invalid(
    "A record follows on the same line, after a byte-order mark: files without a last line end were joined.",
    "Part them: `sed 's/\\xEF\\xBB\\xBF/\\n/g' in.jsonl > out.jsonl`.",
)
CUT = invalid(
    "The line ends in the middle of the record.",
    "If it is the last line, the file was cut: copy or export it again. If the record goes on in the next line, "
    "write it on one: `jq -c '.' in.jsonl > out.jsonl`.",
)
CUT_IN_TEXT = invalid(
    "The line ends within a text: the file was cut, or an unescaped line break stands in the text.",
    "If it is the last line, copy or export the file again; else write line breaks as \\n. " + DUMPS,
)
HALF_CHARACTER = invalid(
    "A text holds half a character (\\ud800 to \\udfff alone): an emoji was cut in two.",
    'Have it replaced by ?: `python -c "import json, sys; [sys.stdout.buffer.write(json.dumps(json.loads(line),'
    " ensure_ascii=False).encode('utf-8', 'replace') + b'\\n') for line in sys.stdin.buffer]\""
    " < in.jsonl > out.jsonl`.",
)
