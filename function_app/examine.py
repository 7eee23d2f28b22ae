"""A dropped file with everything that belongs to it: recipe, held-out file, tokenizer, estimate.

Used by the intake and by the checker for people, so that both say the same. No Azure in here.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from .budget import judge
from .dataset.report import Report
from .recipe import Recipe, RecipeError, Resolved, resolve
from .recipe.defaults import LIVE

Write = Callable[[bytes], object]


class Companions(msgspec.Struct, frozen=True):
    """What may lie beside a dataset, and the dataset's blob metadata; each with the name to speak of it by."""

    recipe: bytes | None = None
    recipe_name: str = "recipe.yaml"
    metadata: Mapping[str, str] = {}
    tokenizer: bytes | None = None
    eval_chunks: Iterable[bytes] | None = None
    eval_name: str = "eval.jsonl"


def examine(
    chunks: Iterable[bytes],
    report: Report,
    *,
    name: str,
    companions: Companions,
    train: Write | None = None,
    held_out: Write | None = None,
    instance_type: str | None = None,
    measured: Callable[[Recipe], float | None] | None = None,
    live_base: Callable[[], str | None] | None = None,
) -> tuple[Recipe, int]:
    """Check a file and fill in ``report``; return its recipe and the fingerprint of its records and their split.

    ``train`` and ``held_out`` get the lines for the training job. ``instance_type``: the machine where the recipe names
    none. ``measured`` tells the tokens per second of an earlier run by the same recipe, and ``live_base`` the base of
    the model that serves now (None: none does); without it that is not known. A recipe that cannot be used is reported,
    and the file is then checked by the defaults, so that everything is told at once.
    """
    from .dataset.check import check_file
    from .dataset.lengths import Limits
    from .estimate import context_limit, estimate, machine_name, max_length
    from .recipe.conflicts import conflicts

    resolved = _resolve(companions, name, report)
    recipe = resolved.recipe
    report.recipe = msgspec.to_builtins(recipe)
    report.recipe_layers = resolved.layers
    based = _with_live_base(recipe, live_base, report)
    for problem in conflicts(recipe, machine_name(recipe, instance_type)):
        report.error("invalid_recipe", problem, "See docs/recipe.md for all keys.")
    fingerprint = check_file(
        chunks,
        report,
        name=name,
        holdout=recipe.evaluation.holdout,
        train=train,
        held_out=held_out,
        limits=Limits(context=context_limit(based), max_length=max_length(based), tokenizer=companions.tokenizer),
        eval_chunks=companions.eval_chunks,
        eval_name=companions.eval_name,
    )
    if report.valid:
        speed = measured(recipe) if measured else None
        report.estimate = estimate(based, report.statistics, speed, instance_type)
        judge(report, report.estimate, recipe.compute)
    return recipe, fingerprint


def _with_live_base(recipe: Recipe, live_base: Callable[[], str | None] | None, report: Report) -> Recipe:
    """The recipe with the base that ``live`` stands for, to reckon with; as it is where that is not known."""
    if recipe.base_model != LIVE or live_base is None:
        return recipe
    base = live_base()
    if base is None:
        report.error(
            "invalid_recipe",
            "`base_model: live` goes on from the model of this name that serves now, and none does.",
            "Name a base model for the first training; `live` is for those that follow.",
        )
    return recipe if not base else msgspec.structs.replace(recipe, base_model=base)


def _resolve(companions: Companions, name: str, report: Report) -> Resolved:
    try:
        return resolve(
            companions.recipe, companions.metadata, file=companions.recipe_name, dataset=name.rpartition("/")[2]
        )
    except RecipeError as error:
        for problem in error.problems:
            report.error("invalid_recipe", problem, "See docs/recipe.md for all keys.")
        return resolve()


def same_training(recipe: Recipe) -> dict[str, Any]:
    """What decides whether two recipes train alike: all but the name of the preset that values came from."""
    values: dict[str, Any] = msgspec.to_builtins(recipe)
    values.pop("preset", None)
    return values
