"""recipe.yaml: defaults, strictness, and messages that name the key."""

import dataclasses
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_app.recipe import Recipe, RecipeError, Training, read_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_an_empty_recipe_is_all_defaults() -> None:
    assert read_recipe("") == read_recipe("# nothing\n") == Recipe()
    assert Recipe().training_options() == {"base_model": "embedded", "method": "full", "questions": []}


def test_numbers_that_yaml_takes_for_texts_are_numbers() -> None:
    recipe = read_recipe("training: {learning_rate: 3e-3, epochs: 2}")
    assert recipe.training.learning_rate == 0.003
    assert recipe.training_options()["learning_rate"] == 0.003


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base_modle: x", "did you mean `base_model`?"),
        ("training: {epoch: 3}", "did you mean `training.epochs`?"),
        ("zzz: 1", "known keys: base_model"),
        ("training: {epochs: -1}", "training.epochs"),
        ("training: {epochs: many}", "training.epochs"),
        ("method: qlora", "method"),
        ("engine: pipeline", "engine"),
        ("evaluation: {holdout: 1.5}", "evaluation.holdout"),
        ("training: 5", "training"),
        ("- a\n- b", "a list"),
        ("base_model: 2026-13-45", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("compute: {max_hours: .inf}", "compute.max_hours"),
        ("training: {epochs: .inf}", "training.epochs"),
        ("a: [", "line 1"),
        ("text", "a str"),
    ],
)
def test_a_wrong_recipe_names_the_key(text: str, named: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(text, "support/recipe.yaml")
    assert named in str(error.value)
    assert str(error.value).startswith("support/recipe.yaml")


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_an_error(text: str) -> None:
    try:
        assert isinstance(read_recipe(text), Recipe)
    except RecipeError as error:
        assert str(error)


def test_the_recipe_survives_the_run_record() -> None:
    recipe = read_recipe('training: {epochs: 2}\nevaluation: {questions: ["Why?"]}')
    stored = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(recipe)))
    assert msgspec.convert(stored, Recipe) == recipe


def test_every_hyperparameter_is_an_option_of_the_training_job() -> None:
    sys.path.insert(0, str(ROOT))
    from training.arguments import FineTuneArguments

    options = {field.name for field in dataclasses.fields(FineTuneArguments)}
    assert set(Training.__struct_fields__) <= options
    assert set(Recipe().training_options()) <= options


def test_the_demos_recipe_is_valid() -> None:
    assert read_recipe((ROOT / "demo" / "recipe.yaml").read_text(encoding="utf-8")).evaluation.questions
