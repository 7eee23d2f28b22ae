"""Pieces of markdown that people's texts cannot break: tables, escaped and shortened cells, formatted numbers."""

import html
import re
from collections.abc import Iterable, Sequence

LONGEST = 400  # characters of a text in a cell


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; every column but the first is aligned to the right when its header begins with ``>``."""
    names = [name.removeprefix(">") for name in header]
    rule = ["---:" if name.startswith(">") else "---" for name in header]
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, rule, *rows])


def cell(text: str, longest: int = LONGEST) -> str:
    """Return somebody's text as it may stand in a table: shortened, on one line, with nothing that is markup."""
    short = text.strip()
    if len(short) > longest:
        short = short[:longest].rstrip() + "…"
    # A model that knows nothing writes anything, control characters too.
    short = "".join(c if c.isprintable() or c == "\n" else "�" for c in short)
    short = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", html.escape(short, quote=False))
    short = short.replace("://", "&#58;//").replace("@", "&#64;")  # no links either
    return re.sub(r"\n+", "<br>", short) or "*(nothing)*"


def number(value: float | None, form: str = ".3f") -> str:
    """Return the number in ``form``, or a dash when there is none; ``%`` forms take a share."""
    if value is None:
        return "–"
    return format(value, form) if abs(value) < 1e7 else format(value, ".1e")


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``5.2 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
