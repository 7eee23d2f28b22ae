"""How long an example, a line and a file may be."""

from typing import Any

import msgspec

from .report import Report

MAX_LINE = 2 * 1024 * 1024  # bytes: some 500,000 tokens, more than any context; decoding a longer one costs memory
MAX_BYTES = 16 * 1024**3  # unpacked; a function has ten minutes, and a file of this size needs most of them


class Limits(msgspec.Struct, frozen=True):
    """How long an example may be, in tokens (None: not known), with the content of a tokenizer.json if there is one;
    how long a line and the whole file may be, in bytes."""

    context: int | None = None
    max_length: int | None = None
    tokenizer: bytes | None = None
    max_line: int = MAX_LINE
    max_bytes: int = MAX_BYTES


NO_LIMITS = Limits()


def tell_length(report: Report, limits: Limits, tokens: int, exact: bool, line: int, where: dict[str, Any]) -> None:
    """Report an example of so many ``tokens``, ``exact``ly or about, which are more than one of the limits."""
    context = limits.context
    about = "" if exact else "about "
    fix = "Shorten or split it, or take a base model with a longer context."
    # An estimate that is twice too high is rare, and one that refuses a good file is worse than one that warns.
    if context is not None and tokens > (context if exact else 2 * context):
        message = f"The example has {about}{tokens:,} tokens; the base model's context holds {context:,}."
        report.error("too_long", message, fix, line=line, **where)
    elif context is not None and tokens > context:
        message = f"The example has about {tokens:,} tokens; the base model's context holds {context:,}."
        fix += " With the model's tokenizer.json beside the dataset tokens are counted exactly."
        report.warn("maybe_too_long", message, fix, line=line, **where)
    else:
        message = f"The example has {about}{tokens:,} tokens; {limits.max_length:,} are trained on, its end is cut off."
        fix = "Set training.max_length in recipe.yaml higher, if its end matters."
        report.warn("truncated", message, fix, line=line, **where)
