"""The gate: which challenger may serve, and why."""

from datetime import UTC, datetime
from typing import Any

import pytest

from function_app.gate import judge
from function_app.runs import Ask, Stage
from function_app.step_kinds import Finish, Move, Wait

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
NAN = float("nan")


def losses(base: object, tuned: object, champion: object = None) -> dict[str, Any]:
    return {"eval": {"base": {"loss": base}, "tuned": {"loss": tuned}, "champion": {"loss": champion}}}


def by_character(tuned: float, champion: float) -> dict[str, Any]:
    """The champion cuts the records into other tokens, so that losses per token cannot be compared."""
    found = losses(2.0, 1.0)
    found["eval"]["tuned"]["loss_per_character"] = tuned
    found["eval"]["champion"]["loss_per_character"] = champion
    return found


@pytest.mark.parametrize(
    ("numbers", "stage"),
    [
        (losses(2.0, 1.0), Stage.APPROVED),
        (losses(1.0, 2.0), Stage.REJECTED),
        (losses(1.0, 1.0), Stage.REJECTED),
        (losses(1.0, NAN), Stage.REJECTED),
        (losses(None, 1.0), Stage.REJECTED),
        ({}, Stage.REJECTED),
        ({"eval": {"base": None, "tuned": {"loss": 1.0}}}, Stage.REJECTED),
        ({"eval": None}, Stage.REJECTED),
        (losses(2.0, 1.5, champion=1.0), Stage.APPROVED),  # the champion does not count
    ],
)
def test_better_than_base_compares_with_the_base_alone(numbers: dict[str, Any], stage: Stage) -> None:
    verdict = judge({"rule": "better_than_base"}, numbers)
    assert isinstance(verdict, (Move, Finish))
    assert verdict.stage == stage


@pytest.mark.parametrize(
    ("numbers", "stage"),
    [
        (losses(2.0, 1.0, champion=1.0), Stage.APPROVED),
        (losses(2.0, 1.01, champion=1.0), Stage.APPROVED),  # worse by the tolerance of 1 %
        (losses(2.0, 1.02, champion=1.0), Stage.REJECTED),
        (losses(1.0, 1.0, champion=5.0), Stage.REJECTED),  # better than the champion, not than the base
        (losses(2.0, 1.0), Stage.APPROVED),  # there is no champion
        (by_character(tuned=0.5, champion=0.4), Stage.REJECTED),
        (by_character(tuned=0.4, champion=0.5), Stage.APPROVED),
        (losses(2.0, 1.0, champion=1.0) | {"safety": {"severities": {"Hate": 2, "Violence": 0}}}, Stage.APPROVED),
        (losses(2.0, 1.0, champion=1.0) | {"safety": {"severities": {"Hate": 4, "Violence": 0}}}, Stage.REJECTED),
    ],
)
def test_the_default_lets_pass_what_is_better_than_the_base_and_not_worse_than_the_champion(
    numbers: dict[str, Any], stage: Stage
) -> None:
    verdict = judge({}, numbers)  # a record whose recipe says nothing of the gate
    assert isinstance(verdict, (Move, Finish))
    assert verdict.stage == stage


def test_the_reason_names_what_was_compared_and_the_recipes_numbers_count() -> None:
    numbers = losses(2.0, 1.1, champion=1.0)
    assert judge({}, numbers).reason == (  # type: ignore[attr-defined]
        "held-out loss 1.100, the base's is 2.000, the serving model's 1.000:"
        " worse than the serving model by more than 1.0%"
    )
    assert isinstance(judge({"tolerance": 0.2}, numbers), Move)
    unsafe = {"safety": {"severities": {"SelfHarm": 6, "Hate": 4}}}
    refused = judge({"rule": "always"}, unsafe)
    assert refused == Finish(
        Stage.REJECTED,
        "content safety: Hate 4, SelfHarm 6 in the sampled answers, more than the gate's max_severity 2",
    )
    assert isinstance(judge({"rule": "always", "max_severity": 6}, unsafe), Move)
    assert "the serving model's is 2.000" in judge({}, losses(2.0, 1.0), None, "the serving model's").reason  # type: ignore[attr-defined]


def test_a_person_decides_where_the_recipe_says_so() -> None:
    manual, worse = {"rule": "manual"}, losses(1.0, 2.0)
    wait = judge(manual, worse)
    assert isinstance(wait, Wait)
    assert "held-out loss 2.000, the base's is 1.000" in wait.reason
    for action, stage in (("approve", Stage.APPROVED), ("reject", Stage.REJECTED)):
        verdict = judge(manual, worse, Ask(action, "alice", NOW, "read it"))  # type: ignore[arg-type]
        assert isinstance(verdict, (Move, Finish))
        assert verdict.stage == stage
        assert "by alice: read it (held-out loss 2.000" in verdict.reason
    # Nobody is asked where the numbers decide.
    assert judge({}, worse, Ask("approve", "alice", NOW)) == judge({}, worse)


def test_the_person_who_decides_is_told_the_severities() -> None:
    found = losses(1.0, 2.0) | {"safety": {"answers": 5, "severities": {"Violence": 4, "Hate": 0}}}
    told = "held-out loss 2.000, the base's is 1.000; content safety: Hate 0, Violence 4 in 5 sampled answers"
    assert judge({"rule": "manual"}, found).reason == f"it waits for a person's approval: {told}"  # type: ignore[attr-defined]
    for action in ("approve", "reject"):
        asked = Ask(action, "alice", NOW)  # type: ignore[arg-type]
        assert told in judge({"rule": "manual"}, found, asked).reason  # type: ignore[attr-defined]
    none_sampled = losses(1.0, 2.0) | {"safety": {"answers": 0, "severities": {}}}
    assert "no answer was sampled" in judge({"rule": "manual"}, none_sampled).reason  # type: ignore[attr-defined]
