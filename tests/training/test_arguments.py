"""The command line and the config file of the job, and the errors that a person reads."""

import json
import math
from pathlib import Path

import pytest
import yaml

from training import FineTuneError
from training.arguments import parse_arguments
from training.fine_tune import main

REQUIRED = ["--train_file", "t.jsonl", "--model_output", "m", "--report_output", "r"]


def config(tmp_path: Path, name: str = "recipe.json", **values: object) -> list[str]:
    path = tmp_path / name
    path.write_text(json.dumps(values))
    return ["--config", str(path), *REQUIRED]


def test_a_flag_wins_over_the_config_file(tmp_path: Path) -> None:
    arguments = parse_arguments([*config(tmp_path, epochs=3, batch_size=4), "--epochs", "2.5"])
    assert (arguments.epochs, arguments.batch_size) == (2.5, 4)


def test_yaml_is_read_too_and_its_exponents_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-4\nmethod: lora\nquestions:\n  - Who?\n")
    arguments = parse_arguments(["--config", str(path), *REQUIRED])
    assert (arguments.learning_rate, arguments.method, arguments.questions) == (1e-4, "lora", ["Who?"])


def test_null_means_the_default_of_that_kind_of_base(tmp_path: Path) -> None:
    embedded = parse_arguments(config(tmp_path, learning_rate=None, lora_r=None))
    real = parse_arguments(config(tmp_path, base_model="some/model", method="lora"))
    assert (embedded.learning_rate, embedded.lora_r) == (3e-3, 16)
    assert (real.learning_rate, real.copies_without_system) == (2e-4, False)


@pytest.mark.parametrize(
    ("values", "flags", "message"),
    [
        ({"learing_rate": 1}, [], "unknown option 'learing_rate' in recipe.json, did you mean 'learning_rate'?"),
        ({}, ["--epoch", "3"], "unknown option --epoch, did you mean 'epochs'?"),
        ({"epochs": "many"}, [], "epochs in recipe.json must be a number, found 'many'"),
        ({"batch_size": 2.5}, [], "batch_size in recipe.json must be a whole number, found 2.5"),
        ({"packing": "maybe"}, [], "packing in recipe.json must be true or false, found 'maybe'"),
        ({"questions": "Who?"}, [], "questions in recipe.json must be a list of texts"),
        ({"method": "dora"}, [], "method in recipe.json must be one of full, lora, qlora, found 'dora'"),
        ({"epochs": 0}, [], "epochs must be greater than 0, found 0.0"),
        ({"eval_max_new_tokens": 0}, [], "eval_max_new_tokens must be greater than 0, found 0"),
        ({}, ["--warmup", "nan"], "--warmup must be a number, found 'nan'"),
        ({"env": {"PATH": ""}}, [], "unknown option 'env' in recipe.json"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, values: dict[str, object], flags: list[str], message: str) -> None:
    with pytest.raises(FineTuneError) as caught:
        parse_arguments([*config(tmp_path, **values), *flags])
    assert str(caught.value) == message


def test_a_missing_option_and_a_broken_config_are_named(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match="missing option --train_file"):
        parse_arguments([])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FineTuneError, match=r"cannot read the config bad\.json"):
        parse_arguments(["--config", str(tmp_path / "bad.json"), *REQUIRED])
    with pytest.raises(FineTuneError, match=r"cannot read the config absent\.json"):
        parse_arguments(["--config", str(tmp_path / "absent.json"), *REQUIRED])


RECIPES = Path(__file__).parents[2] / "training" / "recipes"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_a_config_too(recipe: Path) -> None:
    arguments = parse_arguments(["--config", str(recipe), *REQUIRED])
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert (arguments.base_model, arguments.method) == (given["base_model"], given["method"])
    for name, value in given["training"].items():
        taken = getattr(arguments, name)
        assert taken == type(taken)(value), name  # YAML 1.1 takes 2e-4 for a text


def test_the_recipes_shape_is_the_flat_one_without_what_is_about_machines(tmp_path: Path) -> None:
    shaped = config(
        tmp_path,
        preset="demo",
        base_model="a/b",
        method="lora",
        engine="command",
        training={"epochs": 2, "learning_rate": None, "activation_checkpointing": True},
        evaluation={"holdout": 0.2, "questions": ["Who?"]},
        compute={"cluster": "c", "anything": 1},
        serving=None,
        gate={"rule": "always"},
        eval_samples=5,
    )
    flat = config(
        tmp_path,
        "flat.json",
        **{"base_model": "a/b", "method": "lora", "epochs": 2, "activation_checkpointing": True},
        questions=["Who?"],
        eval_samples=5,
    )
    assert parse_arguments(shaped) == parse_arguments(flat)
    assert parse_arguments(config(tmp_path, training=None, evaluation={})) == parse_arguments(config(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"epoch": 1}}, "unknown option 'training.epoch' in recipe.json, did you mean 'training.epochs'?"),
        ({"training": {"method": "lora"}}, "unknown option 'training.method' in recipe.json"),
        ({"training": {"epochs": "x"}}, "training.epochs in recipe.json must be a number, found 'x'"),
        ({"training": 5}, "training in recipe.json must be a mapping of options, found int"),
        ({"evaluation": {"holdouts": 1}}, "'evaluation.holdouts' in recipe.json, did you mean 'evaluation.holdout'?"),
        ({"trainign": {}}, "unknown option 'trainign' in recipe.json, did you mean 'training'?"),
        (
            {"epochs": 1, "training": {"epochs": 2}},
            "epochs and training.epochs in recipe.json are the same option; give one of them",
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named_with_its_section(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(FineTuneError) as caught:
        parse_arguments(config(tmp_path, **values))
    assert message in str(caught.value)


# The app's estimate reckons so, tests/unit/test_estimate.py: records, epochs, batch_size, accumulation → steps.
@pytest.mark.parametrize(
    ("records", "epochs", "batch", "accumulation", "steps"),
    [(10, 1, 4, 1, 3), (10, 2.5, 4, 1, 8), (10, 2, 4, 2, 4), (10, 2, 2, 2, 6), (10, 0.1, 8, 1, 1), (1, 3, 8, 8, 3)],
)
def test_the_trainer_counts_steps_as_the_apps_estimate_does(
    tmp_path: Path, records: int, epochs: float, batch: int, accumulation: int, steps: int
) -> None:
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
        report_to="none",
    )
    trainer = transformers.Trainer.__new__(transformers.Trainer)
    trainer.args = arguments
    trainer.get_sp_size = lambda: 1
    trainer.get_total_train_batch_size = lambda _: batch * accumulation
    loader = [range(0)] * math.ceil(records / batch)
    trainer.num_examples = lambda _: records
    assert trainer.set_initial_training_values(arguments, loader)[-1] == steps


SECRET = "my password is swordfish"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "t.jsonl does not exist"),
        ("\n\n", "t.jsonl holds no records"),
        ('{"messages": [', "t.jsonl line 1 is not JSON"),
        (f'\n{{"texts": "{SECRET}"}}', "t.jsonl line 2 must be an object with a non-empty list 'messages'"),
        (f'{{"messages": [{{"role": "user", "content": "{SECRET}"}}]}}', "line 1: the last message must be"),
        ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}', "line 1: each message needs"),
        ("\udcff", "t.jsonl is not UTF-8"),
    ],
)
def test_bad_data_ends_the_job_with_one_line_that_tells_no_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    path = tmp_path / "t.jsonl"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    code = main(["--train_file", str(path), "--model_output", "m", "--report_output", "r"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert code == 1
    assert last.startswith("error: ")
    assert message in last
    assert SECRET not in last
