"""The layers of a recipe, the stronger on the weaker: built-in defaults ← preset ← recipe.yaml ← blob metadata."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from .defaults import TRAINING
from .fields import Recipe
from .parsing import RecipeError
from .reading import read_metadata, read_yaml

PRESETS = TRAINING / "recipes"
BUILT_IN = "built-in defaults"
USUAL_MACHINE = "a100"  # of a preset that names the model alone: phi-4-mini is phi-4-mini-a100


class Resolved(msgspec.Struct, frozen=True):
    """A recipe and, in words, the layers that it was made from, the weakest first."""

    recipe: Recipe
    layers: list[str]


def resolve(
    text: str | bytes | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    file: str = "recipe.yaml",
    dataset: str = "dataset.jsonl",
) -> Resolved:
    """Put the layers together. ``text``: the recipe.yaml (None: there is none); ``metadata``: the dropped blob's.

    Mappings merge, lists replace, and null is as if the key were not there. ``file`` and ``dataset`` name the layers
    in messages. Raises RecipeError with every problem of every layer.
    """
    problems: list[str] = []
    about_blob = f"metadata of {dataset}"
    own = {} if text is None else read_yaml(text, file, problems)
    blobs = read_metadata(metadata or {}, about_blob, problems)
    preset: dict[str, Any] = {}
    for where, values in ((file, own), (about_blob, blobs)):
        if "preset" in values:
            preset = _preset(values["preset"], where, problems)  # the stronger one comes last
    if problems:
        raise RecipeError(problems)
    merged = _merge(_merge(preset, own), blobs)
    name = merged.get("preset")
    layers = [BUILT_IN]
    layers += [f"preset {name}"] if name else []
    layers += [file] if text is not None else []
    layers += [about_blob] if blobs else []
    return Resolved(msgspec.convert(merged, Recipe), layers)


def read_recipe(text: str | bytes, file: str = "recipe.yaml") -> Recipe:
    """A recipe from its text alone; an empty one is all defaults. Raises RecipeError."""
    return resolve(text, file=file).recipe


def preset_names() -> list[str]:
    """The recipes that come with the app; of those for several machines also the model's name alone."""
    files = {path.stem for path in PRESETS.glob("*.yaml")}
    return sorted(files | {name.removesuffix(f"-{USUAL_MACHINE}") for name in files})


def preset_file(name: str) -> Path:
    """The file of a preset by one of its names."""
    exact = PRESETS / f"{name}.yaml"
    return exact if exact.is_file() else PRESETS / f"{name}-{USUAL_MACHINE}.yaml"


def _preset(name: str, where: str, problems: list[str]) -> dict[str, Any]:
    # Only names of the list are opened: a name is no path.
    if name not in preset_names():
        close = difflib.get_close_matches(name[:100].lower(), preset_names(), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(preset_names())}."
        problems.append(f"{where}: unknown preset `{name[:60]}`; {hint}")
        return {}
    return read_yaml(preset_file(name).read_bytes(), f"preset {name}", problems, preset_allowed=False)


def _merge(weaker: dict[str, Any], stronger: dict[str, Any]) -> dict[str, Any]:
    merged = dict(weaker)
    for key, value in stronger.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
