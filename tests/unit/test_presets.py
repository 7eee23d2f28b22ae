"""The presets: each resolves, fits its machine by the arithmetic of docs/training.md, and is known to the estimate."""

import re
from pathlib import Path

import pytest

from function_app.dataset.report import Report, Statistics
from function_app.dataset.wording import training
from function_app.estimate import context_limit, estimate
from function_app.examine import Companions, examine
from function_app.machines import Base, Machine, base, machine
from function_app.prices import prices
from function_app.recipe import Recipe, read_recipe, resolve
from function_app.recipe.conflicts import conflicts
from function_app.recipe.defaults import effective
from function_app.recipe.layers import PRESETS, preset_names

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("phi-3-mini-4k", "phi-3-mini-128k", "phi-3.5-mini", "phi-4-mini")
MACHINES = {"a100": "Standard_NC24ads_A100_v4", "v100": "Standard_NC6s_v3", "cpu": "Standard_E16s_v3"}
PAIRS = [(model, name) for model in MODELS for name in MACHINES]

CUDA = 1.5e9  # its context, its libraries, and what the allocator cannot use


def preset(model: str, machine_name: str) -> tuple[Recipe, Base, Machine]:
    recipe = resolve(f"preset: {model}-{machine_name}").recipe
    model_, computer = base(recipe.base_model), machine(recipe.compute.instance_type)
    assert model_ is not None
    assert computer is not None
    return recipe, model_, computer


def needed(recipe: Recipe, model: Base, recomputed: bool) -> float:
    """Bytes that a training takes, about: weights, what is trained, activations, scores over the vocabulary, CUDA.

    What an element-wise layer keeps follows Korthikanti et al. 2022 ("Reducing activation recomputation"), section 4.1,
    for Phi's layer: ten times its hidden and four times its intermediate size, without attention's scores, which sdpa
    does not keep. The vocabulary's scores exist in the number format and, with their gradient, in fp32.
    """
    options = effective(recipe)
    size = 4 if options["precision"] == "fp32" else 2  # auto is only left to an A100
    linear = model.parameters - model.embeddings
    # 4 bits and, for double quantisation, 0.127 bits a parameter (Dettmers et al. 2023, section 3).
    weights = {
        "full": 4 * model.parameters,
        "lora": size * model.parameters,
        "qlora": linear * 4.127 / 8 + size * model.embeddings,
    }[recipe.method]
    ends = model.hidden + model.qkv, 2 * model.hidden, model.hidden + 2 * model.intermediate, model.intermediate
    adapters = model.layers * options["lora_r"] * (sum(ends) + model.hidden)
    trained = 12 * model.parameters if recipe.method == "full" else 16 * adapters
    tokens = options["batch_size"] * options["max_length"]
    layer = tokens * size * (10 * model.hidden + 4 * model.intermediate)
    kept = model.layers * tokens * size * model.hidden + layer if recomputed else model.layers * layer
    return weights + trained + kept + tokens * model.vocabulary * (size + 8) + CUDA


def test_every_model_has_a_preset_for_every_machine_and_a_name_of_its_own() -> None:
    files = {path.stem for path in PRESETS.glob("*.yaml")}
    assert files == {"demo", *(f"{model}-{name}" for model, name in PAIRS)}
    assert set(preset_names()) == files | set(MODELS)
    for model in MODELS:  # the name alone is the A100's
        short, long = (resolve(f"preset: {name}").recipe for name in (model, f"{model}-a100"))
        assert (short.training, short.compute) == (long.training, long.compute)


@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_a_preset_fits_its_machine(model: str, name: str) -> None:
    recipe, known, computer = preset(model, name)
    assert computer.name == MACHINES[name]
    # With room for what is rough in the formula. Only on the V100 activations have to be recomputed.
    assert needed(recipe, known, recomputed=name == "v100") < 0.85 * computer.memory
    assert recipe.training.precision in (computer.best_precision(), None)  # None is auto, which is the same
    assert conflicts(recipe, computer.name) == []
    context = context_limit(recipe)
    assert context is not None
    assert effective(recipe)["max_length"] <= context


@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_a_preset_serves_on_a_machine_that_holds_the_model(model: str, name: str) -> None:
    recipe, known, _ = preset(model, name)
    serving = machine(recipe.serving.instance_type)
    assert serving is not None
    # Keys and values of 4,096 tokens in 16 bits; qkv holds the queries too.
    a_chat = 4096 * known.layers * (known.qkv - known.hidden) * 2
    assert 2 * known.parameters + recipe.serving.max_concurrent_requests * a_chat + CUDA < serving.memory


def test_the_full_method_would_not_fit_the_small_gpu_and_qlora_makes_room_there() -> None:
    _, known, computer = preset("phi-3-mini-4k", "v100")
    full, lora, qlora = (
        needed(read_recipe(f"preset: phi-3-mini-4k-v100\nmethod: {method}"), known, True)
        for method in ("full", "lora", "qlora")
    )
    assert full > computer.memory > lora > qlora + 4e9


@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_a_presets_time_and_cost_are_told(model: str, name: str) -> None:
    recipe, _, computer = preset(model, name)
    statistics = Statistics(records=300, train=300, tokens=60_000)
    found = estimate(recipe, statistics)
    assert found.steps == recipe.training.epochs * -(-300 // {"a100": 16, "v100": 16, "cpu": 8}[name])
    assert found.seconds is not None
    assert found.seconds < 3600 * recipe.compute.max_hours
    hourly = prices().hourly(computer.name, "dedicated")
    assert found.cost is not None
    assert found.cost == pytest.approx((found.seconds / 3600 + 0.25) * hourly, abs=0.01)


def test_the_training_job_takes_a_presets_file_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from training.arguments import parse_arguments

    for path in PRESETS.glob("*.yaml"):
        needed_too = ("--train_file", "t", "--model_output", "m", "--report_output", "r")
        arguments = parse_arguments(["--config", str(path), *needed_too])
        given = effective(resolve(f"preset: {path.stem}").recipe)
        assert {name: getattr(arguments, name) for name in given} == given


@pytest.mark.parametrize("name", MACHINES)
def test_the_presets_of_a_machine_differ_only_where_the_models_do(name: str) -> None:
    recipes = [preset(model, name)[0] for model in MODELS]
    own = {"max_length", "batch_size", "gradient_accumulation"}
    for recipe in recipes[1:]:
        assert recipe.compute == recipes[0].compute
        assert recipe.method == recipes[0].method
        for field in set(recipe.training.__struct_fields__) - own:
            assert getattr(recipe.training, field) == getattr(recipes[0].training, field), field


def test_a_preset_can_be_trained_by_the_pipeline_too() -> None:
    for model, name in PAIRS:
        if name != "cpu":  # it is for GPUs
            text = f"preset: {model}-{name}\nengine: pipeline\ngate: {{rule: always}}"
            assert conflicts(resolve(text).recipe, MACHINES[name]) == []


def test_the_documents_table_of_presets_is_right() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for model, name in PAIRS:
        recipe, _, computer = preset(model, name)
        row = re.search(rf"^\| `{re.escape(model)}-{name}` \|(.*)\|$", page, re.MULTILINE)
        assert row, f"docs/training.md has no row for {model}-{name}"
        options = effective(recipe)
        batch = f"{options['batch_size']} × {options['gradient_accumulation']}"
        length = f"{options['max_length']:,}"
        cells = [f"`{computer.name}`", recipe.method, computer.best_precision(), length, batch]
        assert [cell.strip() for cell in row[1].split("|")] == cells


def test_the_documents_estimate_is_what_the_checker_says() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    report = Report(dataset="dataset.jsonl")
    companions = Companions(recipe=b"preset: phi-4-mini-a100")
    examine([(ROOT / "demo" / "dataset.jsonl").read_bytes()], report, name="dataset.jsonl", companions=companions)
    for name, value in training(report):
        assert re.search(rf"^  {re.escape(name)} +{re.escape(value)}$", page, re.MULTILINE), (name, value)


def test_the_documents_recipes_are_valid() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        read_recipe(block)
    for inline in re.findall(r"`(compute: \{.*?\}|gate: \{.*?\})`", page):
        read_recipe(inline)
