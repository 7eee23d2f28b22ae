"""The tags of a registered model: which data, recipe and job it comes from, and what it was measured at."""

from typing import Any

import msgspec

from .engines.tags import MAX_TAG, lineage
from .recipe import Recipe
from .runs import Run

# Of the evaluation, by the model that was measured: `tuned` is the one that is registered.
MEASURED = {"": "tuned", "base_": "base", "champion_": "champion"}
SCORES = ("loss", "perplexity", "token_accuracy", "loss_per_character", "exact_match")


def of_model(run: Run) -> dict[str, str]:
    """Texts only, none longer than Azure takes. What is not known is left out."""
    recipe = msgspec.convert(run.recipe, Recipe)
    numbers: dict[str, Any] = run.numbers
    counts, scores = numbers.get("dataset") or {}, numbers.get("eval") or {}
    told: dict[str, Any] = {
        "job": run.job,
        "dataset_sha256": ((numbers.get("splits") or {}).get("train") or {}).get("sha256"),
        "train_records": counts.get("train"),
        "eval_records": counts.get("eval"),
        "context_length": numbers.get("context_length"),
        **{
            prefix + name: _rounded((scores.get(which) or {}).get(name))
            for prefix, which in MEASURED.items()
            for name in SCORES
        },
    }
    base = str(numbers.get("base_model") or recipe.base_model)
    tags = lineage(run, recipe, base, **{name: str(value) for name, value in told.items() if value is not None})
    return {name: value[-MAX_TAG:] for name, value in tags.items()}


def _rounded(score: Any) -> str | None:
    return f"{score:.6g}" if isinstance(score, int | float) else None
