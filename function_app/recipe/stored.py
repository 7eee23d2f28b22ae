"""The recipe as a run's record keeps it."""

from typing import Any

import msgspec

from .fields import Recipe


def stored_recipe(recipe: dict[str, Any]) -> Recipe:
    """The recipe of a record; what an older record does not have yet has the defaults of today."""
    return msgspec.convert(recipe, Recipe)
