"""How this machine trains this model fastest: number format, attention, packing, memory. Each choice was measured."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from training.arguments import FineTuneArguments

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Choices:
    """``dtype``: of the weights in training. ``sft_options``: for TRL's SFTConfig, what is not named here."""

    dtype: torch.dtype
    per_device_batch: int
    accumulation: int
    sft_options: dict[str, Any] = field(default_factory=dict)


def use_threads_given() -> None:
    """Let torch use OMP_NUM_THREADS threads or, without it, as many as this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores))


def computes_bf16() -> bool:
    """Return whether the device multiplies bf16 natively; where a CPU only emulates it, fp32 is faster."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def choose(arguments: FineTuneArguments, model: "PreTrainedModel", dataset: "Dataset") -> Choices:
    """Return the choices for this model, device and data."""
    bf16 = arguments.precision == "bf16" or (arguments.precision == "auto" and computes_bf16())
    packing = bool(arguments.packing)
    return Choices(
        # Full training keeps its master weights in fp32; a base that only carries adapters may stay small.
        dtype=torch.bfloat16 if bf16 and arguments.method != "full" else torch.float32,
        # A packed sequence holds several records. Without a flash kernel it must be alone in its forward pass, because
        # the mask that keeps its records apart exists only there; so batches become accumulation.
        per_device_batch=1 if packing else arguments.batch_size,
        accumulation=arguments.gradient_accumulation * (arguments.batch_size if packing else 1),
        sft_options={
            "bf16": bf16,
            "packing": packing,
            "activation_checkpointing": bool(arguments.activation_checkpointing),
        },
    )


def prepare(model: "PreTrainedModel", choices: Choices) -> "PreTrainedModel":
    """Return the model as it will be trained."""
    return model.to(choices.dtype)
