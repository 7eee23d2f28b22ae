"""How close an answer is to the one expected, as SQuAD measures it, and what that makes over many lines.

Exact match and token F1 are those of the official script for SQuAD 1.1 (Rajpurkar et al. 2016, "SQuAD: 100,000+
Questions for Machine Comprehension of Text", evaluate-v1.1.py): before they are compared, texts are put in lower case
and lose ASCII punctuation, the English articles and spare blanks. Tokens are what stands between blanks, so F1 says
little of languages that are written without them. Two texts without any token count as equal, as in SQuAD 2.0's script.
"""

import math
import re
import string
from collections import Counter
from statistics import fmean
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """The text as SQuAD compares it."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, expected: str) -> float:
    """1 when both texts are the same once they are normalised, else 0."""
    return float(normalise(answer) == normalise(expected))


def token_f1(answer: str, expected: str) -> float:
    """The harmonic mean of precision and recall over the tokens, from 0 to 1; a repeated token counts as often."""
    given, wanted = normalise(answer).split(), normalise(expected).split()
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted))


def score(answer: dict[str, Any], expected: str) -> dict[str, float | None]:
    """The scores of one line: ``exact_match``, ``token_f1`` and ``seconds`` (None unless the flow's rules say timed).

    ``answer`` is a chat.completion, whose first choice counts. Raises ValueError for one without.
    """
    try:
        text = answer["choices"][0]["message"].get("content") or ""
    except (LookupError, TypeError, AttributeError):
        raise ValueError(
            "The input answer must be a chat.completion with choices: map it to ${run.outputs.answer}."
        ) from None
    seconds = answer.get("seconds")
    return {
        "exact_match": exact_match(text, expected),
        "token_f1": token_f1(text, expected),
        "seconds": float(seconds) if isinstance(seconds, int | float) else None,
    }


def summarise(scores: list[dict[str, float | None]]) -> dict[str, float]:
    """The metrics of a run: ``lines``, the means of the scores, median and 95th percentile (nearest rank) of seconds.

    Lines that failed are None here and count in ``failed``; a mean over no lines is left out.
    """
    scored = [line for line in scores if line]
    metrics: dict[str, float] = {"lines": len(scored), "failed": len(scores) - len(scored)}
    for name in ("exact_match", "token_f1"):
        if values := [value for line in scored if (value := line.get(name)) is not None]:
            metrics[name] = round(fmean(values), 6)
    if seconds := sorted(value for line in scored if (value := line.get("seconds")) is not None):
        for name, share in (("latency_p50", 0.5), ("latency_p95", 0.95)):
            metrics[name] = seconds[math.ceil(share * len(seconds)) - 1]
    return metrics
