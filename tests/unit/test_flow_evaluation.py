"""The evaluation flow's scores are SQuAD's, and its metrics those of the lines that were scored."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "flow" / "evaluation"


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import answer_scores

    yield answer_scores
    del sys.modules["answer_scores"]


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "f1"),
    [
        ("The old mill!", "old mill", 1, 1),
        ("an  Old\nMILL.", "the old, mill", 1, 1),
        ("In the old mill.", "The old mill", 0, 0.8),  # 2 of 3 tokens, both of 2: 2 · (2/3 · 1) / (2/3 + 1)
        ("mill mill mill", "mill", 0, 0.5),
        ("Tuesday", "Friday", 0, 0),
        ("theatre", "the atre", 0, 0),  # an article is a word
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("something", "", 0, 0),
        ("Łódź", "łódź", 1, 1),
    ],
)
def test_scores_are_those_of_squad(scores: Any, answer: str, expected: str, exact: float, f1: float) -> None:
    assert scores.exact_match(answer, expected) == exact
    assert scores.token_f1(answer, expected) == pytest.approx(f1)


def test_the_metrics_of_a_run(scores: Any) -> None:
    lines = [
        scores.score({"choices": [{"message": {"content": "yes"}}], "seconds": seconds}, expected)
        for seconds, expected in ((0.1, "yes"), (0.3, "no"), (0.2, "Yes."), (None, "yes"))
    ]
    assert scores.summarise([*lines, None]) == {
        "lines": 4, "failed": 1, "exact_match": 0.75, "token_f1": 0.75, "latency_p50": 0.2, "latency_p95": 0.3,
    }  # fmt: skip
    assert scores.summarise([]) == {"lines": 0, "failed": 0}
    assert scores.score({"choices": [{"message": {"content": None}}]}, "")["exact_match"] == 1


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{}]}, "text", {"choices": [{"message": "x"}]}])
def test_an_answer_that_is_none_is_explained(scores: Any, answer: Any) -> None:
    with pytest.raises(ValueError, match=r"map it to \$\{run\.outputs\.answer\}"):
        scores.score(answer, "x")
