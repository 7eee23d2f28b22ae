"""How the tokens of one answer are chosen."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """``temperature`` 0 is greedy; without ``seed`` it is random."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None = None
