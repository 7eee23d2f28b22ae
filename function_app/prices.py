"""What a training costs by the price table, prices.yaml: US dollars, and the sentence that says how they come about."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import yaml

from .machines import last_known
from .recipe import Recipe

TABLE = Path(__file__).with_name("prices.yaml")


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The price table, in US dollars; its comments say what each number is."""

    machines: dict[str, float]
    low_priority_share: float
    low_priority: dict[str, float]
    setup_minutes: float
    service: dict[str, float]

    def hourly(self, machine: str, tier: str) -> float | None:
        """US dollars for an hour of one machine; None when it is not in the table."""
        dedicated = _of(self.machines, machine)
        if tier == "dedicated":
            return dedicated
        own = _of(self.low_priority, machine)
        return own if own is not None or dedicated is None else dedicated * self.low_priority_share


class Cost(NamedTuple):
    """US dollars: what is expected and what the time limit allows at most (None: not known), and how reckoned."""

    expected: float | None
    limit: float | None
    basis: str


@cache
def prices() -> Prices:
    """The table of this process, read once. Raises msgspec.ValidationError when prices.yaml has been broken."""
    return msgspec.convert(yaml.safe_load(TABLE.read_text(encoding="utf-8")), Prices)


def cost(recipe: Recipe, seconds: float | None, trained_tokens: int, machine: str) -> Cost:
    """What the training will cost. ``seconds``: of the training alone; ``machine``: "" when it is not known.

    A machine is billed from its start to its end: prices.yaml's setup_minutes, the training, and the idle time after
    which it is given back, on each of ``compute.instance_count`` machines.
    """
    if recipe.engine == "service":
        return _service(recipe, trained_tokens)
    compute = recipe.compute
    if not machine:
        return Cost(None, None, "unknown: the recipe names no compute.instance_type")
    hourly = prices().hourly(machine, compute.tier)
    if hourly is None:
        return Cost(None, None, f"unknown: function_app/prices.yaml has no price for {machine}")
    rate, besides = hourly * compute.instance_count, (prices().setup_minutes + compute.idle_minutes) / 60
    limit = (compute.max_hours + besides) * rate
    several = compute.instance_count > 1
    machines = f"{compute.instance_count} × {machine}" if several else machine
    tier = ", low priority," if compute.tier == "low_priority" else ""
    price = f"a list price of {hourly:.4g} US dollars an hour{' each' if several else ''}"
    basis = f"{machines}{tier} at {price}, with {besides * 60:.0f} minutes besides"
    # The job is stopped by then, whatever the estimate says.
    expected = None if seconds is None else min(limit, (seconds / 3600 + besides) * rate)
    return Cost(_rounded(expected), _rounded(limit), f"{basis} the training")


def _service(recipe: Recipe, trained_tokens: int) -> Cost:
    table = prices().service
    name = last_known(recipe.base_model, table)
    if name is None:
        return Cost(None, None, f"unknown: function_app/prices.yaml has no service price for {recipe.base_model}")
    expected = _rounded(trained_tokens / 1e6 * table[name])
    return Cost(expected, expected, f"{table[name]:.4g} US dollars for a million trained tokens; hosting not counted")


def _rounded(amount: float | None) -> float | None:
    return None if amount is None else round(amount, 4)


def _of(table: dict[str, float], machine: str) -> float | None:
    return next((price for name, price in table.items() if name.lower() == machine.lower()), None)
