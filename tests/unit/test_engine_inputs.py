"""What the engines reckon without Azure: the pipeline's inputs, quotas, machines, the cluster's name."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml
from azure.core.exceptions import HttpResponseError

from function_app.engines import clusters, collected, command, machines
from function_app.engines.machines import Machine, shortage
from function_app.engines.pipeline_inputs import display_name, finetune_parameters, literal, unsuitable
from function_app.errors import StepError, TransientError, UserError
from function_app.recipe import Recipe, read_recipe
from function_app.runs import DatasetVersion, new_run, utc_now
from function_app.settings import read_settings

A100 = Machine("Standard_NC24ads_A100_v4", 1, 24, 220.0, "StandardNCADSA100v4Family", True)
LIMITS = {"Dedicated": 40, "LowPriority": 0}
TYPES = {
    "num_train_epochs": "integer",
    "per_device_train_batch_size": "integer",
    "per_device_eval_batch_size": "integer",
    "gradient_accumulation_steps": "integer",
    "learning_rate": "number",
    "lr_scheduler_type": "string",
    "apply_lora": "string",
    "apply_deepspeed": "string",
    "deepspeed_stage": "string",
    "precision": "string",
    "warmup_steps": "integer",
    "logging_steps": "integer",
    "early_stopping_patience": "integer",
    "apply_early_stopping": "string",
}


def usage(label: str, limit: int) -> dict[str, Any]:
    return {"name": {"value": label.replace(" ", "_"), "localizedValue": label}, "limit": limit, "currentValue": 0}


def parameters(text: str, of_model: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[str]]:
    return finetune_parameters(read_recipe(text), of_model or {}, TYPES, records=100, devices=2)


def test_the_model_s_defaults_win_over_the_tutorial_s_and_the_recipe_over_both() -> None:
    of_model = {"num_train_epochs": 1, "deepspeed_stage": 3, "precision": 16, "apply_lora": "false", "odd": 1}
    given, notes = parameters("method: lora\ntraining: {learning_rate: 1e-4, batch_size: 4}", of_model)
    assert given == {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "apply_lora": "true",
        "apply_deepspeed": "true",
        "deepspeed_stage": "3",
        "precision": "16",
    }
    assert notes == ["odd of the model's defaults is no input of the component"]


def test_a_recipe_s_keys_become_the_component_s() -> None:
    given, notes = parameters(
        "method: full\ntraining: {epochs: 2, batch_size: 5, gradient_accumulation: 2, warmup: 0.1, sharding: none,"
        " lr_scheduler: constant, early_stopping: 3, precision: fp32, lora_r: 8}"
    )
    assert (given["apply_lora"], given["apply_deepspeed"], given["precision"]) == ("false", "false", "32")
    assert (given["apply_early_stopping"], given["early_stopping_patience"]) == ("true", 3)
    # 100 records in batches of 5 on 2 devices, two of them a step: 5 steps an epoch.
    assert (given["lr_scheduler_type"], given["warmup_steps"], given["num_train_epochs"]) == (
        "constant_with_warmup",
        1,
        2,
    )
    assert notes == ["the component has no input lora_r"]  # this one; the registry's has it


def test_a_model_s_default_of_another_type_is_ignored_with_a_note() -> None:
    of_model = {"per_device_train_batch_size": "auto", "num_train_epochs": 1e999, "gradient_accumulation_steps": 0}
    given, notes = parameters("method: lora\ntraining: {warmup: 0.1}", of_model)
    assert (given["per_device_train_batch_size"], given["num_train_epochs"]) == (1, 3)
    assert given["warmup_steps"] == 15
    assert notes == [f"{name} of the model's defaults is no integer and was ignored" for name in list(of_model)[:2]]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "{'a': [1]}",
        "{1: 2}",
        "['a'",
        "[" * 5000,
        "'x' * 9",
        "{'a.b': 1}",
        "[1]" + " " * 30_000,
    ],
)
def test_a_tag_that_is_no_plain_literal_is_ignored_with_a_note(text: str) -> None:
    value, note = literal({"model_specific_defaults": text}, "model_specific_defaults", dict)
    assert value is None
    assert "model_specific_defaults" in note


def test_good_tags_are_read_and_missing_ones_are_no_problem() -> None:
    tags = {"a": "['Standard_NC24ads_A100_v4']", "b": " {'precision': 16, 'apply_lora': 'true'} "}
    assert literal(tags, "a", list) == (["Standard_NC24ads_A100_v4"], "")
    assert literal(tags, "b", dict) == ({"precision": 16, "apply_lora": "true"}, "")
    assert literal(tags, "c", dict) == (None, "")


def test_without_an_allow_list_small_gpus_are_denied() -> None:
    assert unsuitable("standard_NC24RS_v3", ["Standard_NC24rs_v3"]) == ""
    assert "is not among" in unsuitable("Standard_NC6s_v3", ["Standard_NC24rs_v3"])
    assert "too small" in unsuitable("Standard_NC6", None)
    assert unsuitable("Standard_NC6s_v3", None) == ""


def test_the_display_name_is_the_tutorial_s() -> None:
    given = {"per_device_train_batch_size": 1, "lr_scheduler_type": "cosine", "apply_deepspeed": "true",
             "deepspeed_stage": "2", "apply_lora": "true", "save_total_limit": 1}  # fmt: skip
    assert display_name("Phi-3-mini-4k-instruct", "ultrachat", given, 2, 1) == (
        "Phi-3-mini-4k-instruct-ultrachat-bs2-cosine-ds2-lora-save_limit1-seqlen-1"
    )


def test_a_quota_that_can_never_suffice_is_named() -> None:
    family = usage("Standard NCADSA100v4 Family Cluster Dedicated vCPUs", 24)
    region = {tier: usage(f"Total Cluster {tier} Regional vCPUs", limit) for tier, limit in LIMITS.items()}
    rows = [family, *region.values()]
    assert shortage(rows, A100, 1, low_priority=False) == ""
    assert "2 × Standard_NC24ads_A100_v4 needs 48 vCPUs" in shortage(rows, A100, 2, low_priority=False)
    assert "NCADSA100v4 Family Cluster Dedicated vCPUs' is 24" in shortage(rows, A100, 2, low_priority=False)
    assert "LowPriority Regional vCPUs' is 0" in shortage(rows, A100, 1, low_priority=True)
    assert shortage([usage("Total Cluster Dedicated Regional vCPUs", -1)], A100, 64, low_priority=False) == ""
    assert shortage([], A100, 1, low_priority=False) == ""


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("Standard_NC24ads_A100_v4", True),
        ("Standard_ND96isr_H100_v5", True),
        ("Standard_ND96asr_v4", True),
        ("Standard_NV36ads_A10_v5", True),
        ("Standard_NC6s_v3", False),
        ("Standard_NC24rs_v3", False),
        ("Standard_ND40rs_v2", False),
        ("Standard_NC64as_T4_v3", False),
    ],
)
def test_gpus_before_ampere_have_no_bf16(name: str, bf16: bool) -> None:
    assert Machine(name, 1, 1, 1.0, "", True).known.emulates_bf16 is not bf16


def test_an_app_that_may_not_read_the_subscription_s_lists_goes_by_its_own_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        error = HttpResponseError("AuthorizationFailed")
        error.status_code = 403
        raise error

    client = SimpleNamespace(compute=SimpleNamespace(list_sizes=refuse, list_usage=refuse))
    monkeypatch.setattr(machines.azure_clients, "ml_client", lambda: client)
    machines.forget()
    found = machines.find_machine("standard_nc48ads_a100_v4", "compute.instance_type")
    assert (found.name, found.gpus) == ("Standard_NC48ads_A100_v4", 2)
    machines.check_quota(found, 9, low_priority=False)
    with pytest.raises(HttpResponseError):
        machines.find_machine("Standard_Unheard", "compute.instance_type")
    machines.forget()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings with nothing but what is required."""
    names = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")
    storage = {"Storage__blobServiceUri": "https://a", "Storage__queueServiceUri": "https://a"}
    known = read_settings({**dict.fromkeys(names, "x"), **storage})
    monkeypatch.setattr(clusters, "settings", lambda: known)


@pytest.mark.usefixtures("known")
def test_other_machines_than_the_usual_ones_get_a_cluster_of_their_own() -> None:
    assert clusters.cluster_name(Recipe()) == "training"
    for text, name in (
        ("{instance_type: standard_e16s_V3}", "training"),
        ("{instance_type: Standard_NC24ads_A100_v4}", "training-nc24ads-a100-v4"),
        ("{tier: low_priority}", "training-low"),
        ("{cluster: mine, instance_type: Standard_NC6s_v3, tier: low_priority}", "mine"),
    ):
        assert clusters.cluster_name(read_recipe(f"compute: {text}")) == name


@pytest.mark.usefixtures("known")
def test_a_cluster_that_failed_is_said_and_one_that_is_on_its_way_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = SimpleNamespace(name="training", type="amlcompute", size=A100.name, max_instances=1, tier="Dedicated",
                            provisioning_state="Failed", provisioning_errors="QuotaExceeded")  # fmt: skip
    monkeypatch.setattr(clusters, "_find", lambda name: found)
    monkeypatch.setattr(clusters, "find_machine", lambda name, key: A100)
    monkeypatch.setattr(clusters, "check_quota", lambda *_: None)
    sentence = r"training could not be made: its state is Failed \(QuotaExceeded\)\. Delete it"
    with pytest.raises(UserError, match=sentence):
        clusters.check_cluster(Recipe())
    with pytest.raises(StepError, match=sentence):
        clusters.ensure_cluster(Recipe())
    found.provisioning_state = "Creating"
    clusters.check_cluster(Recipe())
    with pytest.raises(TransientError, match="training is Creating"):
        clusters.ensure_cluster(Recipe())
    found.type = "computeinstance"
    with pytest.raises(UserError, match="training is a computeinstance, and training needs a cluster"):
        clusters.check_cluster(Recipe())


def test_the_gpu_environment_has_the_same_packages_as_the_other() -> None:
    training = Path(__file__).resolve().parents[2] / "training"
    pins: dict[str, dict[str, str]] = {}
    for file in ("conda.yml", "conda-gpu.yml"):
        lines = yaml.safe_load((training / file).read_text(encoding="utf-8"))["dependencies"][-1]["pip"]
        pins[file] = dict(line.split("==") for line in lines if not line.startswith("-"))
    gpu = pins["conda-gpu.yml"]
    assert pins["conda.yml"].items() <= gpu.items()
    assert gpu.keys() - pins["conda.yml"].keys() == {"bitsandbytes", "deepspeed"}


def test_torch_for_gpus_comes_from_the_index_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "settings", lambda: SimpleNamespace(training_gpu_index="https://index.example/cu126"))
    assert command._gpu_packages()["dependencies"][-1]["pip"][0] == "--extra-index-url https://index.example/cu126"
    monkeypatch.setattr(command, "settings", lambda: SimpleNamespace(training_gpu_index=""))
    assert not command._gpu_packages()["dependencies"][-1]["pip"][0].startswith("-")


@pytest.mark.parametrize(
    ("machine", "text", "told"),
    [
        ("Standard_NC6s_v3", "", "Standard_NC6s_v3, with its V100, needs torch built for CUDA 12.6"),
        ("Standard_NC48ads_A100_v4", "training: {sharding: zero2}", "training.sharding zero2 needs torch"),
        ("Standard_NC24ads_A100_v4", "", ""),
    ],
)
def test_what_needs_the_index_says_so(machine: str, text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = SimpleNamespace(training_gpu_index="", training_gpu_image="image")
    monkeypatch.setattr(command, "settings", lambda: given)
    problem = command._without_index(Machine(machine, 1, 24, 220.0, "", True), read_recipe(text))
    assert problem.startswith(told)
    assert bool(problem) == bool(told)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"eval": {"base": {"loss": "low"}}}', "Expected `float | null`, got `str`"),
        (b'{"eval": null, "context_length": 4096.5}', "Expected `int | null`"),
        (b'{"train": {"loss": NaN}}', "cannot be read"),
        (b"[]", "Expected `object`"),
    ],
)
def test_a_report_that_does_not_fit_ends_the_run_with_a_sentence(
    content: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StepError, match=re.escape(told)):
        measured(content, monkeypatch)


def test_long_samples_do_not_make_the_record_large(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = {"messages": [{"role": "user", "content": "x" * 100_000}], "expected": None, "base": "a", "tuned": "b"}
    found = measured(msgspec.json.encode({"eval": None, "samples": [sample] * 5, "steps": 3}), monkeypatch)
    assert (len(found["samples"]), found["steps"]) == (2, 3)
    assert measured(b'{"eval": {"base": {"loss": 2}, "champion": null}}', monkeypatch)["samples"] == []


def measured(content: bytes, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the app takes of a metrics.json with that content."""
    stored = SimpleNamespace(download_blob=lambda name: SimpleNamespace(readall=lambda: content))
    monkeypatch.setattr(collected.azure_clients, "datastore_container", lambda name: stored)
    return collected.metrics(new_run("m", DatasetVersion("m/x.jsonl", "0x1", 1, utc_now()), utc_now()))
