"""What happens in one schedule, drawn from its seed: dropped files, people's wishes, and how much goes wrong."""

from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from .faults import Rates

ASKED = 5  # questions of the recipe, so each look at a deployment asks so many
# How a dataset's training and model behave (tests/instant), and where its run ends when nothing newer comes.
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "good": ({"loss": 0.5}, "live"),
    "worse": ({"loss": 3.0}, "rejected"),
    "worse_than_champion": ({"loss": 1.5}, "live or rejected"),
    "fails": ({"fail": "the training cannot go on"}, "failed"),
    "crashes": ({"serve": "crash"}, "failed"),
    "empty": ({"serve": "empty"}, "failed"),
    "empty_later": ({"serve": "empty", "serve_after": ASKED}, "live or failed"),
    "wrong": ({"serve": "wrong"}, "failed"),
    "invalid": ({}, "rejected"),
    "twin": ({}, "as its twin"),
}
WEIGHTS = {"good": 12, "worse": 2, "worse_than_champion": 2, "fails": 2, "crashes": 1, "empty": 1, "empty_later": 2,
           "wrong": 1, "invalid": 1, "twin": 2}  # fmt: skip
Action = Literal["cancel", "approve", "reject", "retry", "retire", "rollback"]


@dataclass(frozen=True)
class Drop:
    """A file at a time (seconds from the start); its job and its server take so many seconds of the schedule."""

    number: int
    at: float
    file: str
    kind: str
    training: float
    starting: float
    manual: bool = False
    twin_of: int = -1


@dataclass(frozen=True)
class Wish:
    """Somebody asks something of the run of a drop, or (retire, rollback) of the model."""

    at: float
    action: Action
    drop: int


@dataclass(frozen=True)
class Schedule:
    """Everything of a schedule that is decided beforehand."""

    seed: int
    drops: list[Drop]
    wishes: list[Wish]
    rates: Rates
    lose_events: float
    repeat_events: float
    lose_messages: float
    repeat_messages: float
    skew: float  # seconds by which an invocation's clock may be wrong
    deaf: bool = False  # no event arrives at all

    @property
    def in_words(self) -> str:
        """``good@0, worse@240, cancel(1)@300``."""
        drops = [f"{drop.kind}{' manual' * drop.manual}@{drop.at:.0f}" for drop in self.drops]
        return ", ".join([*drops, *(f"{wish.action}({wish.drop})@{wish.at:.0f}" for wish in self.wishes)])


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    random = Random(f"schedule {seed}")  # noqa: S311
    drops = _drops(random)
    wishes = _wishes(random, drops)
    stormy = random.random() < 0.75
    rates = (
        Rates(passing=0.02, lasting=0.008, kill=0.005, race=0.01)
        if stormy
        else Rates(passing=0.0, lasting=0.0, kill=0.0, race=0.015)
    )
    return Schedule(
        seed, drops, wishes, rates,
        lose_events=random.choice([0.0, 0.1, 0.3]), repeat_events=random.choice([0.0, 0.3]),
        lose_messages=random.choice([0.0, 0.02, 0.05]), repeat_messages=random.choice([0.0, 0.05]),
        skew=random.choice([0, 0, 30, 180]), deaf=random.random() < 0.08,
    )  # fmt: skip


def _drops(random: Random) -> list[Drop]:
    drops: list[Drop] = []
    at = 0.0
    for number in range(random.choice([1, 2, 2, 3, 3])):
        kind = random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        twins = [drop.number for drop in drops if drop.kind in ("good", "fails")]
        if kind == "twin" and not twins:
            kind = "good"
        drops.append(
            Drop(
                number,
                at,
                # The same file again, or another one of the same model.
                drops[-1].file if drops and kind != "twin" and random.random() < 0.4 else f"data-{number}.jsonl",
                kind,
                training=random.choice([5.0, 60.0, 400.0]),
                starting=random.choice([2.0, 90.0, 300.0]),
                manual=kind in ("good", "worse") and random.random() < 0.15,
                twin_of=random.choice(twins) if kind == "twin" else -1,
            )
        )
        # Into the earlier one's training, deployment or shares; or when it is over.
        at += random.choice([3, 20, 90, 240, 600, 2400]) * random.uniform(0.7, 1.4)
    return drops


def _wishes(random: Random, drops: list[Drop]) -> list[Wish]:
    end = drops[-1].at
    wishes = [
        Wish(drop.at + random.uniform(60, 3000), random.choice(["approve", "approve", "reject"]), drop.number)
        for drop in drops
        if drop.manual
    ]
    if random.random() < 0.25:
        drop = random.choice(drops)
        at = drop.at + random.choice([10, 120, 500]) * random.uniform(0.5, 2)
        wishes.append(Wish(at, "cancel", drop.number))
        if random.random() < 0.6:
            wishes.append(Wish(at + random.choice([5, 600, 4000]), "retry", drop.number))
    elif random.random() < 0.15:
        drop = random.choice(drops)
        wishes.append(Wish(drop.at + 3000, "retry", drop.number))
    if len(drops) > 1 and random.random() < 0.25:
        wishes.append(Wish(end + random.uniform(1500, 6000), "rollback", drops[0].number))
    if random.random() < 0.2:
        wishes.append(Wish(random.uniform(900, end + 6000), "retire", drops[-1].number))
    return sorted(wishes, key=lambda wish: wish.at)
