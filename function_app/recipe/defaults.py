"""What the training job takes for what a recipe leaves out: training/defaults.yaml, which the job itself reads."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .fields import Recipe

TRAINING = Path(__file__).resolve().parents[2] / "training"
EMBEDDED = "embedded"
LIVE = "live"
KINDS = (EMBEDDED, "full", "lora", "qlora")


@cache
def training_defaults() -> dict[str, dict[str, Any]]:
    """The options' defaults by kind of training; ``every`` holds what does not depend on it."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((TRAINING / "defaults.yaml").read_text(encoding="utf-8"))
    return loaded


def kind_of(recipe: Recipe) -> str:
    """Which defaults hold: ``embedded``, or the method's."""
    return EMBEDDED if recipe.base_model == EMBEDDED else recipe.method


def effective(recipe: Recipe) -> dict[str, Any]:
    """Every hyperparameter with the value that the job will use."""
    defaults = training_defaults()
    given = recipe.training_options()
    values = {**defaults["every"], **defaults[kind_of(recipe)]}
    return {name: given.get(name, values.get(name)) for name in recipe.training.__struct_fields__}
