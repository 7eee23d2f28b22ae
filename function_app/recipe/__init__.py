"""recipe.yaml: how a dataset becomes a model. Typed, every field defaulted, nothing unknown accepted.

fields.py     what may stand in a recipe, with its bounds and meaning
parsing.py    YAML text → nodes with their lines
reading.py    one layer: YAML or blob metadata → checked values, or problems that a person can mend
layers.py     the layers on top of each other → one recipe
defaults.py   what the training job takes for what the recipe leaves out
conflicts.py  what cannot be together whatever the data
stored.py     the recipe of a run's record
describe.py   the fields as a JSON schema and as a table; `python -m function_app.recipe` prints them
"""

from .fields import Recipe, Training
from .layers import Resolved, read_recipe, resolve
from .parsing import RecipeError
from .stored import stored_recipe

__all__ = ["Recipe", "RecipeError", "Resolved", "Training", "read_recipe", "resolve", "stored_recipe"]
