"""What a file, line or record of another format is told as, and the commands that turn it into ours."""

from pathlib import PurePosixPath
from shlex import quote

import msgspec

# What the three formats look like; the end of many a fix.
SHAPE = 'A line is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}.'


class Foreign(msgspec.Struct, frozen=True):
    """What was met instead of what is wanted. No value of the data is ever part of it.

    ``line`` is 0 for a file that has no lines (binary, empty), else counts from 1. ``path`` is the JSON path within
    the record, without its ``$.``.
    """

    code: str
    message: str
    fix: str
    line: int = 1
    path: str = ""


def prepare(file: str = "in.jsonl", columns: str = "") -> str:
    """The command that converts a local file (of any kind that training.prepare_dataset reads)."""
    option = f" --columns {columns}" if columns else ""
    return f"Run `python -m training.prepare_dataset {quote(file)} --output out/{option}`."


def prepare_named(name: str, *endings: str) -> str:
    """The same for the file ``name``, which has to be called by one of ``endings`` for it (the first is advised)."""
    path = PurePosixPath(PurePosixPath(name).name or "in")
    if path.suffix.lower() in endings:
        return prepare(path.name)
    renamed = path.stem + endings[0]
    return f"Rename it to {renamed}. {prepare(renamed)}"


def jq(program: str) -> str:
    """The command that rewrites each record."""
    return f"With jq: `jq -c '{program}' in.jsonl > out.jsonl`."


def invalid(message: str, fix: str) -> Foreign:
    """The answer for a line that is no JSON object."""
    return Foreign("invalid_json", message, fix)


ONE_LINE = "Write each record on one line. " + jq(".")
DUMPS = "Write each record with a JSON library (Python: `json.dumps(record, ensure_ascii=False)`), not with print()."
