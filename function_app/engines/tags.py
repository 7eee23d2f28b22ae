"""The tags by which the studio shows where a job's model comes from."""

from hashlib import sha256

import msgspec

from ..recipe import Recipe
from ..runs import Run

MAX_TAG = 256  # characters of a tag's value


def lineage(run: Run, recipe: Recipe, base_model: str, **more: str) -> dict[str, str]:
    """The tags of a run's job; of a text that is too long the end, which tells more. Empty ones are left out."""
    tags = {
        "model": run.model,
        "run_id": run.id,
        "dataset": run.dataset.blob,
        "dataset_etag": run.dataset.etag,
        "engine": recipe.engine,
        "base_model": base_model,
        "method": recipe.method,
        "recipe": sha256(msgspec.json.encode(recipe, order="deterministic")).hexdigest()[:12],
        **more,
    }
    return {name: value[-MAX_TAG:] for name, value in tags.items() if value}
