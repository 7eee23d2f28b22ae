"""The choices follow the device, and an optimiser step sees the records that were asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from training import FineTuneError, attention, choices
from training.arguments import FineTuneArguments
from training.base_model import embedded_model, embedded_tokenizer
from training.choices import check_gpu, choose, prepare, restore
from training.progress import Tracking
from training.trainer import train

RECORDS = [list(range(10, 10 + n)) for n in (20, 8, 30, 12, 9, 25, 14)]


def arguments(**options: Any) -> FineTuneArguments:
    return FineTuneArguments(train_file="t", model_output="m", report_output="r", **options)


def records() -> Dataset:
    return Dataset.from_dict({"input_ids": RECORDS, "labels": RECORDS})


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A V100, as torch describes one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**34, 2**34))


@pytest.mark.usefixtures("a_gpu")
def test_a_v100_trains_in_fp16_and_keeps_fp32_master_weights() -> None:
    model = embedded_model(embedded_tokenizer())
    full = choose(arguments(), model, records())
    adapters = choose(arguments(method="lora"), model, records())
    assert (full.precision, full.dtype) == ("fp16", torch.float32)
    assert (full.sft_options["fp16"], full.sft_options["bf16"]) == (True, False)
    assert adapters.dtype == torch.float16


@pytest.mark.usefixtures("a_gpu")
def test_bf16_on_a_device_without_it_is_refused() -> None:
    with pytest.raises(FineTuneError, match=r"V100.*does not compute in bf16.*auto"):
        choose(arguments(precision="bf16"), embedded_model(embedded_tokenizer()), records())


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(FineTuneError, match="needs a GPU"):
        choose(arguments(precision="fp16"), embedded_model(embedded_tokenizer()), records())


def test_too_little_memory_turns_checkpointing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = embedded_model(embedded_tokenizer())
    assert not choose(arguments(), model, records()).checkpointing
    monkeypatch.setattr(choices.memory, "available", lambda: 2**20)
    assert choose(arguments(), model, records()).checkpointing
    assert not choose(arguments(activation_checkpointing=False), model, records()).checkpointing


def test_a_model_in_four_bits_is_not_cast() -> None:
    model = embedded_model(embedded_tokenizer())
    model.is_loaded_in_4bit = True
    chosen = choose(arguments(method="qlora", precision="auto"), model, records())
    assert prepare(model, chosen).dtype == torch.float32


def test_the_attention_is_given_back_after_training() -> None:
    model = embedded_model(embedded_tokenizer())
    chosen = choose(arguments(packing=True), model, records())
    assert prepare(model, chosen).config._attn_implementation == attention.NAME
    restore(model, chosen)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packed_and_padded_train_the_same(method: str) -> None:
    """The same records in each step, so the same losses; dropout is off, or they would draw other numbers."""
    results = []
    for packing in (False, True):
        tokenizer = embedded_tokenizer()
        model = embedded_model(tokenizer)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.manual_seed(0)
        given = arguments(
            method=method, packing=packing, batch_size=3, epochs=2, precision="fp32", gradient_accumulation=2
        )
        results.append(train(given, model, tokenizer, records(), Tracking())[1])
    assert results[0]["steps"] == results[1]["steps"] == 4  # ceil(2 * ceil(ceil(7 / 3) / 2))
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-4)


def test_a_gpu_that_torch_cannot_use_is_told_and_not_worked_around(tmp_path: Path) -> None:
    check_gpu(tmp_path / "none")
    device = tmp_path / "nvidia0"
    device.touch()
    with pytest.raises(FineTuneError, match=r"has an NVIDIA GPU, but torch \S+ cannot use it"):
        check_gpu(device)
