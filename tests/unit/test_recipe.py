"""Recipes: layers, strictness, messages that name layer, key and fix; schema and documentation agree with the code."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from function_app.recipe import Recipe, RecipeError, Training, describe, layers, read_recipe, resolve
from function_app.recipe.__main__ import main
from function_app.recipe.conflicts import conflicts
from function_app.recipe.defaults import KINDS, effective, training_defaults
from function_app.recipe.options import leaves
from function_app.recipe.parsing import MAX_BYTES
from function_app.recipe.reading import NUMBER, TRUTH, metadata_name

ROOT = Path(__file__).resolve().parents[2]


def problems(text: str | bytes | None, **metadata: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(text, metadata, file="support/recipe.yaml", dataset="chats.jsonl")
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# --- layers ---


def test_an_empty_recipe_is_all_defaults() -> None:
    for text in ("", "# nothing\n", "null", b"\xef\xbb\xbf", b"---\n", "training:\ngate: {rule: null}"):
        assert read_recipe(text) == Recipe()
    assert Recipe().training_options() == {"base_model": "embedded", "method": "full", "questions": []}
    assert resolve().layers == ["built-in defaults"]


def test_a_stronger_layer_wins_key_by_key_and_lists_replace() -> None:
    text = "preset: demo\ntraining: {epochs: 2, seed: 1}\nevaluation: {questions: ['Why?']}"
    metadata = {"Recipe_Training_Epochs": "3e0", "owner": "finance", "recipe_compute_max_hours": "1"}
    resolved = resolve(text, metadata, file="support/recipe.yaml", dataset="chats.jsonl")
    recipe = resolved.recipe
    assert (recipe.preset, recipe.training.epochs, recipe.training.seed) == ("demo", 3.0, 1)
    assert recipe.training.batch_size == 10  # the preset's
    assert recipe.evaluation.questions == ["Why?"]
    assert recipe.evaluation.holdout == 0.1
    assert recipe.compute.max_hours == 1
    assert resolved.layers == [
        *("built-in defaults", "preset demo", "support/recipe.yaml", "metadata of chats.jsonl")
    ]  # fmt: skip


def test_null_falls_through_to_the_weaker_layer() -> None:
    recipe = resolve("preset: demo\ntraining: {epochs: null}\nmethod: ~", {"recipe_training_epochs": ""}).recipe
    assert (recipe.training.epochs, recipe.method) == (15.0, "full")


def test_only_layers_that_are_there_are_named() -> None:
    assert resolve(None, {"owner": "me", "recipe_method": "lora"}).layers == [
        *("built-in defaults", "metadata of dataset.jsonl")
    ]  # fmt: skip
    assert resolve("", {"recipe_method": ""}).layers == ["built-in defaults", "recipe.yaml"]


def test_the_metadatas_preset_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"training: {{seed: {seed}}}")
    monkeypatch.setattr(layers, "PRESETS", tmp_path)
    resolved = resolve("preset: one", {"recipe_preset": "two"})
    assert resolved.recipe.training.seed == 2
    assert resolved.layers[1] == "preset two"
    assert resolve("preset: one", {"recipe_preset": "null"}).recipe.training.seed == 1


def test_a_preset_names_no_other_and_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outer.yaml").write_text("base_model: embedded\npreset: inner")
    monkeypatch.setattr(layers, "PRESETS", tmp_path)
    assert problems("preset: outer") == [
        "preset outer, line 2: `preset`: a preset cannot name another one; leave the key out."
    ]
    assert "unknown preset `../recipes/demo`" in problems("preset: ../recipes/demo")[0]


def test_every_problem_of_every_layer_is_told_at_once_and_the_first_line_stands_alone() -> None:
    found = problems("preset: demmo\nepochs: 3\nmethod: dora", recipe_training_epoch="3", recipe_method="Full")
    assert found == [
        "support/recipe.yaml, line 2: unknown key `epochs`; did you mean `training.epochs`?",
        "support/recipe.yaml, line 3: `method`: expected `full`, `lora` or `qlora`, found the text `dora`.",
        "metadata of chats.jsonl: `recipe_method`: expected `full`, `lora` or `qlora`, found the text `Full`.",
        "metadata of chats.jsonl: unknown name `recipe_training_epoch`; did you mean `recipe_training_epochs`?",
        "support/recipe.yaml: unknown preset `demmo`; did you mean `demo`?",
    ]
    assert len(problems("\n".join(f"wrong{n}: 1" for n in range(99)))) == 21


def test_each_preset_is_valid_alone() -> None:
    for name in layers.preset_names():
        assert resolve(f"preset: {name}").layers[1] == f"preset {name}"


# --- one layer ---


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base_modle: x", "line 1: unknown key `base_modle`; did you mean `base_model`?"),
        ("training: {epoch: 3}", "did you mean `training.epochs`?"),
        ("training:\n  learning-rate: 3", "line 2: unknown key `training.learning-rate`; did you mean `training.learn"),
        ("learningRate: 3", "did you mean `training.learning_rate`?"),
        ("instance_type: x", "did you mean `compute.instance_type` or `serving.instance_type`?"),
        ("zzz: 1", "known keys: preset, base_model"),
        ("3: 1", "unknown key `3`"),
        ("? [a]\n: b", "a key is a word, found a list"),
        ("training: {epochs: -1}", "`training.epochs`: expected a number greater than 0 and at most 1,000,000, found"),
        ("training: {epochs: many}", "`training.epochs`"),
        ("training: {epochs: '3'}", "found the text `3`; leave the quotes out"),
        ("training: {warmup: 0,5}", "unknown key `training.5`"),
        ("training:\n  warmup: 0,5", "line 2: `training.warmup`: expected a number at least 0 and less than 1, found"),
        ("training:\n  warmup: 0,5", "write a decimal point, not a comma"),
        ("training: {seed: 010}", "leave the leading zero out"),
        ("training: {epochs: 1:30}", "found `1:30`"),
        ("training: {batch_size: 2.5}", "expected a whole number from 1 to 1,000,000, found `2.5`"),
        ("training: {packing: 'yes'}", "expected true or false, found the text `yes`; leave the quotes out"),
        ("training: {packing: 1}", "expected true or false, found `1`"),
        ("base_model: no", "found `no`, which YAML reads as true or false; put it in quotes"),
        ("base_model: 3", "put it in quotes"),
        ("base_model: ''", "expected a text that is not empty, found an empty text"),
        ("method: dora", "`method`: expected `full`, `lora` or `qlora`"),
        ("method: !foo full", "the tag !foo; leave the tag out"),
        ("engine: sagemaker", "`engine`: expected `command`, `pipeline` or `service`"),
        ("evaluation: {holdout: 1.5}", "`evaluation.holdout`"),
        ("evaluation: {questions: Why}", "`evaluation.questions`: expected a list of texts"),
        (
            "evaluation: {questions: [Why?, null]}",
            "within brackets or braces put a text with a question mark in quotes",
        ),
        ("evaluation: {questions: [Why, null]}", "`evaluation.questions[1]`"),
        ("training: 5", "`training`: expected keys below it, such as `epochs: …`, found `5`"),
        ("- a\n- b", "expected a mapping such as `base_model: embedded`, found a list"),
        ("text", "found the text `text`"),
        ("epochs:3", "a space belongs after the colon"),
        ("[" * 3000, "not valid YAML"),
        ("a: [", "line 1, column 5: not valid YAML"),
        ("a: b: c", "a colon where none can be"),
        ("training:\n\tepochs: 3", "line 2, column 1: not valid YAML: found a tab; indent with spaces"),
        ("training:\n  epochs: 3\n seed: 1", "the indentation of this line fits none"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("method: full\nmethod: lora", "line 2: `method` is given twice, first in line 1; leave one out"),
        ("training: {seed: 1, 'seed': 1}", "`training.seed` is given twice"),
        ("<<: {method: lora}", "unknown key `<<`"),
        ("a: &x [1]\nb: *x", "anchors (&) and aliases (*) are not for recipes"),
        ("base_model: '\x01'", "the character U+0001 is not allowed"),
        ("compute: {max_hours: .inf}", "`compute.max_hours`"),
        ("training: {epochs: .nan}", "`training.epochs`"),
        ("training: {epochs: 1e999}", "`training.epochs`"),
        ("# " + "x" * MAX_BYTES, "bytes are too many for a recipe; 65,536 is the limit"),
        (b"base_model: caf\xe9", "not UTF-8 (byte 16); save it as UTF-8"),
    ],
)
def test_a_wrong_recipe_names_the_place_and_what_fits(text: str | bytes, named: str) -> None:
    found = problems(text)
    assert any(named in problem for problem in found), found
    assert all(re.match(r"support/recipe\.yaml(, line \d+(, column \d+)?)?: ", problem) for problem in found)


def test_texts_that_are_meant_as_numbers_and_truths_are_taken_as_such() -> None:
    given = read_recipe("training: {learning_rate: 3e-3, epochs: +2E+0, batch_size: 1e1, packing: Yes, warmup: .5}")
    assert given.training == Training(learning_rate=0.003, epochs=2.0, batch_size=10, packing=True, warmup=0.5)
    assert read_recipe("base_model: 2026-01-01").base_model == "2026-01-01"


@pytest.mark.parametrize("key", [*leaves()])
def test_every_key_can_be_given_by_metadata(key: str) -> None:
    value: Any = describe.json_schema()
    for part in key.split("."):
        value = value["properties"][part]
    example = value.get("enum", [value.get("default")])[0] or ("text" if "string" in value["type"] else 0.5)
    if "integer" in value.get("type", []):
        example = min(20, value.get("maximum", 20))
    if "boolean" in value.get("type", []):
        example = True
    if "array" in value.get("type", []):
        example = [20, 100] if value["items"]["type"] == "integer" else ["Why?"]
    recipe = resolve(None, {metadata_name(key): json.dumps(example)}).recipe
    built: Any = msgspec.to_builtins(recipe)
    for part in key.split("."):
        built = built[part]
    assert built == example


def test_what_is_wrong_with_metadata_is_named_by_its_own_name() -> None:
    assert problems(None, recipe_training_epochs="[1") == [
        "metadata of chats.jsonl: `recipe_training_epochs`, line 1, column 3: not valid YAML: expected ',' or ']',"
        " but got '<stream end>'."
    ]
    assert "found a mapping" in problems(None, recipe_training_epochs="{a: 1}")[0]
    assert problems(None, recipe_base_modl="x")[0].endswith("did you mean `recipe_base_model`?")


@given(st.text(max_size=60) | st.binary(max_size=60), st.text(max_size=20))
def test_any_text_is_a_recipe_or_an_error(text: str | bytes, value: str) -> None:
    try:
        assert isinstance(resolve(text, {"recipe_training_epochs": value}).recipe, Recipe)
    except RecipeError as error:
        assert str(error)


def test_the_recipe_survives_the_run_record() -> None:
    recipe = read_recipe('preset: demo\ntraining: {epochs: 2, seed: 4294967295}\nevaluation: {questions: ["Why?"]}')
    stored = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(recipe)))
    assert msgspec.convert(stored, Recipe) == recipe


# --- what cannot be together ---

PHI = "base_model: microsoft/Phi-4-mini-instruct\n"
UNJUDGED = "gate: {rule: always}\n"
REGISTRY = f"{UNJUDGED}base_model: azureml://registries/azureml/models/Phi-4-mini-instruct\n"


@pytest.mark.parametrize(
    ("text", "machine", "said"),
    [
        (f"{PHI}method: qlora", "Standard_E16s_v3", ["needs an NVIDIA GPU, and Standard_E16s_v3 has none"]),
        (f"{PHI}method: qlora", "Standard_NC6s_v3", []),
        (f"{PHI}method: qlora", "", []),  # nothing is known of the machine
        (f"{PHI}method: qlora", "Standard_X", []),
        (f"{PHI}training: {{precision: bf16}}", "standard_nc6s_V3", ["the GPUs of Standard_NC6s_v3 only emulate it"]),
        (f"{PHI}training: {{precision: bf16}}", "Standard_NC24ads_A100_v4", []),
        (f"{PHI}training: {{precision: fp16}}", "Standard_E16s_v3", ["`training.precision: fp16` is for GPUs"]),
        ("training: {early_stopping: 2, eval_every: 0}", "", ["needs measurements"]),
        ("training: {early_stopping: 2}", "", []),
        ("compute: {cluster: my cluster}", "", ["`compute.cluster: my cluster` is no name that Azure ML takes"]),
        (f"{UNJUDGED}engine: service\nbase_model: live", "", ["not `base_model: live`"]),
        (f"{UNJUDGED}engine: service\nbase_model: microsoft/Phi-4-mini-instruct", "", ["of a registry only"]),
        (f"{UNJUDGED}engine: pipeline", "", ["not `base_model: embedded`"]),
        (f"{PHI}engine: pipeline", "", ["nothing could pass `gate.rule: better`"]),
        (f"{REGISTRY}engine: service", "Standard_E16s_v3", []),  # it has machines of its own
        (f"{REGISTRY}engine: service\nmethod: qlora", "Standard_E16s_v3", ["answers to `method: qlora`"]),
        (f"{REGISTRY}engine: service\ntraining: {{epochs: 3, learning_rate: 1, batch_size: 4}}", "", []),
        (f"{REGISTRY}engine: service\ntraining: {{lora_r: 8, seed: 1}}", "", ["`training.lora_r`, `training.seed`;"]),
        (f"{REGISTRY}engine: pipeline\ntraining: {{seed: 1, packing: true}}", "", ["answers to `training.packing`;"]),
        (f"{REGISTRY}engine: pipeline\nmethod: qlora", "", ["answers to `method: qlora`"]),
        (f"{REGISTRY}engine: pipeline\ntraining: {{precision: bf16}}", "", ["`training.precision: bf16`"]),
        (f"{REGISTRY}engine: pipeline\ntraining: {{epochs: 1.5}}", "", ["takes whole epochs, not 1.5"]),
        (f"{REGISTRY}engine: pipeline\ntraining: {{eval_every: 2}}", "", ["`training.eval_every` outside of 0 to 1"]),
        (f"{REGISTRY}engine: pipeline\ntraining: {{sharding: zero2}}", "Standard_NC6s_v3", []),
        (f"{PHI}training: {{sharding: zero2}}", "Standard_NC6s_v3", ["Standard_NC6s_v3 has one"]),
        (f"{PHI}training: {{sharding: fsdp}}", "Standard_NC12s_v3", []),
        (
            "serving: {server: vllm, instance_type: standard_e4s_v3}",
            "",
            ["Standard_E4s_v3 has none; take one with a GPU"],
        ),
        ("serving: {server: vllm, instance_type: Standard_NC24ads_A100_v4}", "", []),
        (f"{REGISTRY}engine: service\nserving: {{server: mlflow}}", "", ["answers to `serving.server`"]),
        ("release: {steps: [50, 10, 100]}", "", ["must rise from step to step"]),
        ("release: {steps: [10, 50]}", "", ["must rise from step to step and end with 100"]),
        ("release: {steps: [100]}", "", []),
    ],
)
def test_what_cannot_be_together_is_told_from_the_recipe_alone(text: str, machine: str, said: list[str]) -> None:
    found = conflicts(read_recipe(text), machine)
    assert len(found) == len(said)
    assert all(part in problem for part, problem in zip(said, found, strict=True)), found


def test_the_command_tells_what_cannot_be_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{PHI}method: qlora\ncompute: {{instance_type: Standard_E16s_v3}}")
    assert main([str(tmp_path / "recipe.yaml")]) == 1
    printed = capsys.readouterr()
    assert "method: qlora" in printed.out
    assert printed.err.startswith("`method: qlora` needs an NVIDIA GPU")


# --- training/ ---


def test_every_hyperparameter_is_an_option_of_the_training_job_with_the_default_that_the_app_states() -> None:
    sys.path.insert(0, str(ROOT))
    from training.arguments import FineTuneArguments

    options = {field.name for field in dataclasses.fields(FineTuneArguments)}
    assert set(Training.__struct_fields__) <= options
    assert set(Recipe().training_options()) <= options
    for text in (
        "",
        "base_model: a/b",
        "base_model: a/b\nmethod: lora",
        "base_model: a/b\nmethod: qlora",
        "method: lora\ntraining: {epochs: 2}",
    ):
        recipe = read_recipe(text)
        taken = FineTuneArguments(train_file="t", model_output="m", report_output="r", **recipe.training_options())
        assert effective(recipe) == {name: getattr(taken, name) for name in Training.__struct_fields__}


def test_the_stated_defaults_fit_the_bounds() -> None:
    for kind in KINDS:
        values = {**training_defaults()["every"], **training_defaults()[kind]}
        assert read_recipe(yaml.safe_dump({"training": values})).training == Training(**values)


def test_the_demos_recipe_is_valid() -> None:
    assert read_recipe((ROOT / "demo" / "recipe.yaml").read_text(encoding="utf-8")).evaluation.questions


# --- the schema and the documentation ---

SCHEMA = describe.json_schema()


def test_the_stored_schema_and_table_are_current() -> None:
    again = "run `python -m function_app.recipe --schema > docs/recipe.schema.json`, --markdown for docs/recipe.md"
    assert json.loads((ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8")) == SCHEMA, again
    assert describe.markdown() in (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8"), again
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_key_is_described() -> None:
    assert all(option.description.endswith(".") for option in leaves().values())


def test_the_documents_examples_hold() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        read_recipe(block)
    shown = re.search(r"```\n(support.*?)\n```", text, re.DOTALL)
    assert shown
    found = problems("base_model: embedded\nepochs: 3\ntraining:\n  warmup: 0,5", recipe_training_epoch="3")
    assert shown[1].replace("line 3: `tr", "line 4: `tr").splitlines() == found


ANYTHING = (
    st.none() | st.booleans() | st.integers(-5, 20) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


def bounds(schema: dict[str, Any]) -> list[float]:
    words = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    return sorted(schema[word] for word in words if word in schema)


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that should fit, of every kind that the schema allows."""
    if "properties" in schema:
        return st.none() | st.fixed_dictionaries(
            {}, optional={name: fitting(each) for name, each in schema["properties"].items()}
        )
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "integer" in schema["type"]:
        return st.none() | st.integers(*bounds(schema)) | st.just(20.0)
    if "number" in schema["type"]:
        return st.none() | st.floats(*bounds(schema), exclude_min="exclusiveMinimum" in schema, exclude_max=True)
    text = st.text(min_size=1)
    return st.none() | {"boolean": st.booleans(), "string": text, "array": st.lists(text)}[schema["type"][0]]


@st.composite
def recipes(draw: st.DrawFn) -> Any:
    """A recipe that fits or, half of the time, one with anything at one place, which may be a key that is not known."""
    recipe = draw(fitting(SCHEMA))
    if recipe is None or draw(st.booleans()):
        return recipe
    section, schema = recipe, SCHEMA
    name = draw(st.sampled_from([*schema["properties"], "method_", "epochs"]))
    if "properties" in schema["properties"].get(name, {}) and draw(st.integers(0, 4)):
        schema = schema["properties"][name]
        section[name] = section.get(name) or {}
        section, name = section[name], draw(st.sampled_from([*schema["properties"], "x"]))
    near = [edge + step for edge in bounds(schema["properties"].get(name, {})) for step in (-1, -0.5, 0, 0.5, 1)]
    section[name] = draw(st.sampled_from([*near, 20, ["a"], ["", 1], {}]) | ANYTHING)
    return recipe


def is_exception(value: Any) -> bool:
    """Whether the value holds a text that the app, by docs/recipe.md, takes for a number or a truth when unquoted."""
    if isinstance(value, dict):
        return any(map(is_exception, value.values()))
    if isinstance(value, list):
        return any(map(is_exception, value))
    return isinstance(value, str) and bool(NUMBER.fullmatch(value) or value.lower() in TRUTH)


@settings(max_examples=300, deadline=None)
@given(recipes().filter(lambda value: not is_exception(value)))
def test_the_schema_accepts_what_the_code_accepts_and_refuses_what_it_refuses(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    try:
        read_recipe(text)
    except RecipeError as error:
        assert not valid, (text, str(error))
    else:
        assert valid, text


# --- the command ---


def test_the_command_prints_the_resolved_recipe_with_the_jobs_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([str(ROOT / "demo" / "recipe.yaml"), "--metadata", "recipe_training_epochs=3", "recipe_preset=demo"]) == 0
    )
    printed = capsys.readouterr().out
    assert printed.startswith("# built-in defaults ← preset demo ← ")
    recipe = read_recipe(printed)
    assert (recipe.training.epochs, recipe.training.max_length, recipe.training.learning_rate) == (3.0, 1024, 0.003)


def test_the_command_says_what_is_wrong_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 3")
    assert main([str(tmp_path / "recipe.yaml")]) == 1
    assert "did you mean `training.epochs`?" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.yaml")]) == 1
    assert "cannot read" in capsys.readouterr().err
