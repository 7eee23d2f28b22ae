"""Node: score one line."""

from typing import Any

import answer_scores
from promptflow.core import tool


@tool  # type: ignore[untyped-decorator]
def score_answer(answer: dict[str, Any], expected: str) -> dict[str, float | None]:
    """See answer_scores.score."""
    return answer_scores.score(answer, expected)
