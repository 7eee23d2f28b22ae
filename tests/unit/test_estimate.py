"""The estimate against what training really does: the demo's steps, and the arithmetic by hand."""

import json
from pathlib import Path

import pytest

from function_app.dataset.report import Percentiles, Report, Statistics
from function_app.estimate import context_limit, estimate, max_length
from function_app.examine import Companions, examine
from function_app.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
A100 = "Standard_NC24ads_A100_v4"


def plain(records: int, tokens: int = 0, **more: int) -> Statistics:
    """Statistics of records that are all trained on."""
    return Statistics(records=records, train=records, tokens=tokens or 100 * records, **more)


def phi(method: str = "lora", training: str = "", machine: str = A100) -> str:
    name = "base_model: microsoft/Phi-3-mini-4k-instruct"
    return f"{name}\nmethod: {method}\ntraining: {{epochs: 1, {training}}}\ncompute: {{instance_type: {machine}}}"


def test_the_demos_file_takes_the_steps_that_the_readme_shows() -> None:
    demo = ROOT / "demo"
    report = Report()
    companions = Companions(recipe=(demo / "recipe.yaml").read_bytes())
    examine([(demo / "dataset.jsonl").read_bytes()], report, name="dataset.jsonl", companions=companions)
    readme, found, counts = (ROOT / "README.md").read_text(encoding="utf-8"), report.estimate, report.statistics
    assert found is not None
    assert f"step 1/{found.steps} " in readme
    assert f"{counts.train} records to train on, {counts.eval} held out; {found.steps} steps" in readme
    assert found.epochs == 15
    assert found.trained_tokens == pytest.approx(counts.tokens * counts.train / counts.records * 2 * 15, abs=1)
    assert found.seconds == pytest.approx(found.trained_tokens / 9000, abs=0.1)


# The numbers of steps are those of transformers 5.23, tests/training/test_arguments.py.
@pytest.mark.parametrize(
    ("records", "training", "steps"),
    [
        (10, "epochs: 1, batch_size: 4", 3),
        (10, "epochs: 2.5, batch_size: 4", 8),
        (10, "epochs: 2, batch_size: 4, gradient_accumulation: 2", 4),
        (10, "epochs: 2, batch_size: 2, gradient_accumulation: 2", 6),
        (10, "epochs: 0.1, batch_size: 8", 1),
        (1, "epochs: 3, batch_size: 8, gradient_accumulation: 8", 3),
        (0, "epochs: 3", 0),
    ],
)
def test_an_epoch_has_whole_steps(records: int, training: str, steps: int) -> None:
    assert estimate(read_recipe(f"training: {{{training}}}"), plain(records)).steps == steps


def test_only_records_with_a_system_message_are_copied() -> None:
    statistics = plain(100, with_system=40)
    recipe = "training: {epochs: 1, batch_size: 10, copies_without_system: %s}"
    assert estimate(read_recipe(recipe % "true"), statistics).steps == 14
    assert estimate(read_recipe(recipe % "false"), statistics).steps == 10
    assert estimate(read_recipe(recipe % "true"), statistics).trained_tokens == 14000


def test_packing_changes_the_layout_and_not_the_number_of_steps() -> None:
    text = "training: {epochs: 1, packing: %s, max_length: 1000, batch_size: 2}"
    packed, padded = (estimate(read_recipe(text % packing), plain(100, 10_000)) for packing in ("true", "false"))
    assert packed.steps == padded.steps == 50


def test_tokens_beyond_max_length_are_not_trained() -> None:
    statistics = plain(100, 150_000)
    statistics.token_histogram = {"2048": 50, "512": 50}
    statistics.record_tokens = Percentiles(max=2000)
    found = estimate(read_recipe("training: {epochs: 1, max_length: 768}"), statistics)
    # 50 × 1536 and 50 × 384 in the histogram's middle; the long ones are cut to half.
    assert found.trained_tokens == round(150_000 * (768 + 384) / (1536 + 384))
    assert estimate(read_recipe("training: {epochs: 1, max_length: 4096}"), statistics).trained_tokens == 150_000


def test_a_measured_speed_beats_every_reckoning() -> None:
    found = estimate(read_recipe(phi()), plain(1000), measured=500.0)
    assert found.seconds == 200
    assert "500 tokens/s of an earlier run" in found.basis


def test_the_time_is_flops_by_the_share_of_the_machines_peak() -> None:
    tokens = 1_000_000
    methods = "full", "lora", "qlora"
    full, lora, qlora = (estimate(read_recipe(phi(method)), plain(100, tokens)) for method in methods)
    assert full.seconds == pytest.approx(tokens * 6 * 3.82e9 / (312e12 * 0.3), abs=0.1)
    assert lora.seconds == pytest.approx(tokens * 4 * 3.82e9 / (312e12 * 0.3), abs=0.1)
    assert qlora.seconds == pytest.approx(lora.seconds * 1.39, abs=0.1)
    for word in ("FLOPs a token", "30%", "bf16"):
        assert word in full.basis
    assert "4-bit" in qlora.basis
    recomputed = estimate(read_recipe(phi(training="activation_checkpointing: true")), plain(100, tokens))
    assert recomputed.seconds == full.seconds  # 2N more than LoRA's 4N


@pytest.mark.parametrize(
    ("machine", "training", "peak"),
    [
        ("Standard_NC6s_v3", "", 112e12),  # fp16 on the tensor cores
        ("Standard_NC4as_T4_v3", "precision: fp16", 65e12),
        ("Standard_NC6s_v3", "precision: fp32", 14e12),
        ("Standard_NC24ads_A100_v4", "precision: fp32", 19.5e12),
        ("Standard_E16s_v3", "", 8 * 2.3e9 * 32),
        ("Standard_NC6s_v3", "precision: bf16", None),  # emulated: nothing is known of its speed
        ("Standard_E16s_v3", "precision: bf16", None),
    ],
)
def test_the_number_format_is_the_fastest_that_the_machine_computes(
    machine: str, training: str, peak: float | None
) -> None:
    found = estimate(read_recipe(phi(machine=machine, training=training)), plain(100, 10**6))
    if peak is None:
        assert found.seconds is None
        assert "only emulates bf16" in found.basis
    else:
        assert found.seconds == pytest.approx(10**6 * 4 * 3.82e9 / (peak * 0.3), abs=0.1)


def test_several_gpus_and_machines_share_a_step() -> None:
    four_gpus = "Standard_NC96ads_A100_v4"
    one, four = (estimate(read_recipe(phi(machine=name)), plain(64)) for name in (A100, four_gpus))
    assert (one.steps, four.steps) == (8, 2)
    two_machines = estimate(read_recipe(phi(machine=f"{four_gpus}, instance_count: 2")), plain(64))
    assert two_machines.steps == 1
    assert two_machines.seconds == pytest.approx(one.seconds / 8, abs=0.1)
    assert f"2 × {four_gpus}" in two_machines.basis


def test_the_pipeline_has_defaults_of_its_own() -> None:
    text = "base_model: microsoft/Phi-4-mini-instruct\nengine: pipeline\n"
    assert estimate(read_recipe(text), plain(100)).steps == 300
    assert estimate(read_recipe(f"{text}training: {{epochs: 1, batch_size: 4}}"), plain(100)).steps == 25


def test_the_services_speed_is_not_known_but_from_an_earlier_run() -> None:
    text = "base_model: microsoft/Phi-4-mini-instruct\nengine: service"
    assert estimate(read_recipe(text), plain(100), instance_type=A100).seconds is None
    assert estimate(read_recipe(text), plain(100), measured=100.0).seconds == 300


def test_the_recipes_machine_counts_more_than_the_apps() -> None:
    unnamed = "base_model: microsoft/Phi-4-mini-instruct"
    assert estimate(read_recipe(unnamed), plain(100), instance_type=A100.upper()).seconds is not None
    assert estimate(read_recipe(phi(machine="Standard_X")), plain(100), instance_type=A100).seconds is None
    in_a_cluster = f"{unnamed}\ncompute: {{cluster: ours}}"
    assert estimate(read_recipe(in_a_cluster), plain(100), instance_type=A100).seconds is None


def test_what_is_not_known_is_said() -> None:
    for text, word in (("base_model: a/b", "base model"), (phi(machine="Standard_X"), "Standard_X")):
        found = estimate(read_recipe(text), plain(100))
        assert found.seconds is None
        assert found.basis.startswith("unknown")
        assert word in found.basis
        assert found.steps > 0


@pytest.mark.parametrize(
    ("base", "limit"),
    [
        ("embedded", 4096),
        ("microsoft/Phi-3-mini-4k-instruct", 4096),
        ("microsoft/Phi-3-mini-128k-instruct", 131072),
        ("microsoft/Phi-3.5-mini-instruct", 131072),
        ("azureml://registries/azureml/models/Phi-4-mini-instruct/versions/1", 131072),
        ("someone/Phi-4-mini-instruct-tuned", None),
        ("/no/such/folder", None),
        ("a\0b", None),
    ],
)
def test_the_context_of_known_bases(base: str, limit: int | None) -> None:
    recipe = read_recipe("") if base == "embedded" else read_recipe(f"base_model: {json.dumps(base)}")
    assert context_limit(recipe) == limit


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ('{"max_position_embeddings": 2048}', 2048),
        ("{}", None),
        ("{", None),
        ('{"max_position_embeddings": "x"}', None),
    ],
)
def test_a_local_folders_context_is_in_its_config(tmp_path: Path, config: str, limit: int | None) -> None:
    (tmp_path / "config.json").write_text(config)
    assert context_limit(read_recipe(f"base_model: {tmp_path}")) == limit


def test_max_length_is_the_recipes_or_the_jobs_default() -> None:
    assert max_length(read_recipe("")) == 1024
    assert max_length(read_recipe("training: {max_length: 2048}")) == 2048


def test_long_texts_are_trained_on_in_pieces():
    lengths = Percentiles(min=6000, p50=6000, p90=6000, p99=6000, max=6000)
    sizes = Statistics(
        format="text", records=100, train=100, tokens=600_000, record_tokens=lengths, token_histogram={"8192": 100}
    )
    recipe = read_recipe("training: {epochs: 1, batch_size: 1, max_length: 1024}")
    made = estimate(recipe, sizes)
    assert (made.trained_tokens, made.steps) == (600_000, 600)
