"""The gate: may the challenger serve? By the numbers of its evaluation, or by a person. No I/O."""

from datetime import timedelta
from typing import Any

import msgspec

from .recipe.fields import Gate
from .runs import Ask, Stage
from .step_kinds import Finish, Move, Step, Wait

APPROVAL_POLL = timedelta(hours=6)  # an approval wakes the run by itself
# Losses that are compared, the first that both models have: nats per token, and per character where tokens differ.
LOSSES = ("loss", "loss_per_character")


def judge(gate: dict[str, Any], numbers: dict[str, Any], asked: Ask | None = None, against: str = "the base's") -> Step:
    """Decide by the recipe's ``gate`` (rule, tolerance, max_severity) and the run's numbers.

    ``asked``: a person's decision, for the rule ``manual``. ``against``: whose loss that of the base is, in words: a
    run may go on from the model that serves.
    """
    rules = msgspec.convert(gate, Gate)
    if rules.rule == "manual":
        return _by_a_person(asked, "; ".join(filter(None, (_compared(numbers, against), _severities(numbers)))))
    if found := _unsafe(numbers, rules.max_severity):
        return Finish(Stage.REJECTED, found)
    if rules.rule == "always":
        return Move(Stage.APPROVED, "the recipe's gate lets every model pass")
    return _by_losses(rules.rule, rules.tolerance, numbers, against)


def _by_a_person(asked: Ask | None, compared: str) -> Step:
    match asked:
        case Ask(action="approve"):
            return Move(Stage.APPROVED, f"approved {asked.in_words} ({compared})")
        case Ask(action="reject"):
            return Finish(Stage.REJECTED, f"rejected {asked.in_words} ({compared})")
        case _:
            return Wait(APPROVAL_POLL, f"it waits for a person's approval: {compared}")


def _severities(numbers: dict[str, Any]) -> str:
    """``content safety: Hate 0, Violence 2 in 5 sampled answers``; "" where it was not asked."""
    safety = numbers.get("safety")
    if safety is None:
        return ""
    severities: dict[str, int] = safety.get("severities") or {}
    told = ", ".join(f"{category} {severity}" for category, severity in sorted(severities.items()))
    return f"content safety: {told} in {safety.get('answers', 0)} sampled answers" if told else "no answer was sampled"


def _unsafe(numbers: dict[str, Any], max_severity: int) -> str:
    safety = numbers.get("safety") or {}
    severities: dict[str, int] = safety.get("severities") or {}
    above = {category: severity for category, severity in severities.items() if severity > max_severity}
    if not above:
        return ""
    told = ", ".join(f"{category} {severity}" for category, severity in sorted(above.items()))
    return f"content safety: {told} in the sampled answers, more than the gate's max_severity {max_severity}"


def _by_losses(rule: str, tolerance: float, numbers: dict[str, Any], against: str) -> Step:
    base, tuned = _loss(numbers, "base", "loss"), _loss(numbers, "tuned", "loss")
    if base is None or tuned is None:
        return Finish(Stage.REJECTED, "the job reported no held-out loss, so nothing shows that the model is better")
    compared = _compared(numbers, against)
    # Written so that a loss that is not a number is refused too.
    if not tuned < base:
        return Finish(Stage.REJECTED, f"{compared}: it is not better, so it does not serve")
    if rule == "better":
        for name in LOSSES:
            champion, challenger = _loss(numbers, "champion", name), _loss(numbers, "tuned", name)
            if champion is None or challenger is None:
                continue
            if not challenger <= champion * (1 + tolerance):
                told = f"{compared}: worse than the serving model by more than {100 * tolerance:g} % (gate.tolerance)"
                return Finish(Stage.REJECTED, f"{told}; that one serves on")
            break
    return Move(Stage.APPROVED, compared)


def _compared(numbers: dict[str, Any], against: str) -> str:
    """``held-out loss 1.234, the base's is 2.345, the serving model's 1.230``."""
    tuned, base = _loss(numbers, "tuned", "loss"), _loss(numbers, "base", "loss")
    if tuned is None:
        return "no held-out loss is known"
    told = f"held-out loss {tuned:.3f}"
    if base is not None:
        told += f", {against} is {base:.3f}"
    if (champion := _loss(numbers, "champion", "loss")) is not None:
        return f"{told}, the serving model's {champion:.3f}"
    champion, challenger = (_loss(numbers, which, "loss_per_character") for which in ("champion", "tuned"))
    if champion is not None and challenger is not None:
        told += f"; per character {challenger:.4f}, the serving model's {champion:.4f}"
    return told


def _loss(numbers: dict[str, Any], which: str, name: str) -> float | None:
    loss = ((numbers.get("eval") or {}).get(which) or {}).get(name)
    return float(loss) if isinstance(loss, int | float) else None
