"""Lines that show by their first characters that they are no JSON object."""

import re

from .foreign import DUMPS, ONE_LINE, Foreign, invalid

# (how the line begins, what it is, the fix), before any parsing
STARTS: list[tuple[re.Pattern[bytes], str, str]] = [
    (re.compile(pattern), what, fix)
    for pattern, what, fix in [
        (
            rb"\xef\xbb\xbf",
            "A byte-order mark stands in the middle of the file: files were joined.",
            "Remove it: `sed 's/\\xEF\\xBB\\xBF//g' in.jsonl > out.jsonl`, or save the parts as UTF-8 without BOM.",
        ),
        (
            rb"```|~~~",
            "The line is a Markdown fence, from an assistant's answer.",
            "Delete the lines that begin with ```.",
        ),
        (
            rb"(data|event|id|retry):",
            "The line is a server-sent event (`data: …`), as a streaming API answers.",
            "Remove the prefix: `sed -n 's/^data: //p' in.jsonl > out.jsonl`; a streamed answer is to be joined first.",
        ),
        (rb"//|#|/\*|<!--", "The line is a comment; JSON has none.", "Delete the line."),
        (
            rb'"\{""|"\[\{""',
            "The JSON is quoted as in CSV: Excel, or a CSV export, has doubled its quotes.",
            'Read the file as CSV and write the column as it is: `python -c "import csv, sys;'
            ' [print(row[0]) for row in csv.reader(sys.stdin)]" < in.jsonl > out.jsonl`.',
        ),
        (
            rb'\{\s*\\"',
            "Each quote has a backslash before it: the record was encoded as a text, and its outer quotes are gone.",
            "Remove one level of escaping: in Python `json.loads('\"' + line.strip() + '\"')` is the record.",
        ),
        (
            rb"b'\{|b\"\{",
            "The line is Python's notation of bytes (b'…').",
            "In Python write `record.decode()` instead of `str(record)`.",
        ),
        (rb"'\{", "The line stands in single quotes, as in a shell command.", "Remove the quotes around the record."),
        (
            rb"\{\s*'|\[\s*(\{\s*)?'",
            "The line is a dict or list as Python prints it: single quotes are not JSON.",
            DUMPS,
        ),
        (
            rb"<{7} |={7}\s*$|>{7} ",
            "The line is Git's mark of a merge conflict.",
            "Resolve the conflict: `git status`.",
        ),
        (rb"<[A-Za-z!?/]", "The line is HTML or XML.", "Delete it, or download the file again."),
        (
            rb"\x1e",
            "The line begins with a record separator (JSON text sequences, RFC 7464).",
            "Remove it: `tr -d '\\036' < in.jsonl > out.jsonl`.",
        ),
        (
            rb'"[^"\\]{1,64}"\s*:',
            "The line is a piece of an object that is spread over several lines (pretty-printed).",
            ONE_LINE,
        ),
        (rb"[}\]][\s,}\]]*$", "The line only closes what an earlier line has opened.", ONE_LINE),
        (
            rb"[{\[]\s*$",
            "The line only opens an object that goes on in the next lines (pretty-printed).",
            ONE_LINE,
        ),
    ]
]


def line_start(head: bytes) -> Foreign | None:
    """What the line is that begins with ``head`` (white space left out); None when its beginning tells nothing."""
    for pattern, message, fix in STARTS:
        if pattern.match(head):
            return invalid(message, fix)
    if head[:64].count(0) > 8:
        return invalid(
            "The line is UTF-16 or zero bytes within a file that is not, as PowerShell's >> writes.",
            "Write the whole file again as UTF-8 (PowerShell: `Set-Content -Encoding utf8`).",
        )
    return None
