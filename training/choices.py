"""How this machine trains this model fastest: number format, attention, packing, memory.

An optimiser step sees ``batch_size * gradient_accumulation`` records on each device, whether they are packed or not:
packing lays the records of a micro-batch end to end in one row, without padding, instead of filling rows of
``max_length``. So, with n = examples and p = processes, the steps of a training are (transformers' Trainer):

    batches = ceil(n / (batch_size * p))
    steps = ceil(epochs * ceil(batches / gradient_accumulation))

Figures: docs/benchmarks.md, `training`. They are of a CPU with bf16. Nothing here was measured on a GPU: there the
libraries' defaults stand, and flash-attention where somebody has installed it.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training import FineTuneError, attention, distributed, fewer_passes, loss, memory
from training.arguments import FineTuneArguments
from training.phases import is_first

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel
    from trl import SFTTrainer

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Choices:
    """``dtype``: of the weights in training. ``sft_options``: for TRL's SFTConfig, what is not named here.

    ``attention``: transformers' name of the implementation in training, ``attention_before`` of the one to return to.
    """

    dtype: torch.dtype
    precision: str
    attention: str
    attention_before: str
    packing: bool
    checkpointing: bool
    per_device_batch: int
    accumulation: int
    sft_options: dict[str, Any] = field(default_factory=dict)


def use_threads_given() -> None:
    """Let torch use OMP_NUM_THREADS threads or, without it, as many as this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores))


def check_gpu(device: Path = Path("/dev/nvidia0")) -> None:
    """Raise FineTuneError when the machine's GPU is of no use to torch: training would go on for days on the CPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if device.exists() and not hidden and not torch.cuda.is_available():
        raise FineTuneError(
            f"this machine has an NVIDIA GPU, but torch {torch.__version__} cannot use it: perhaps its driver is older "
            "than the CUDA that torch was built for; install torch for an older CUDA (in Azure: the app setting "
            "TRAINING_GPU_INDEX), or set CUDA_VISIBLE_DEVICES to nothing to train on the processor"
        )


def computes_bf16() -> bool:
    """Return whether the device multiplies bf16 natively; where a CPU only emulates it, fp32 is faster."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def choose(arguments: FineTuneArguments, model: "PreTrainedModel", dataset: "Dataset") -> Choices:
    """Return the choices for this model, device and data, and print them as one line.

    Raises FineTuneError when the device cannot compute in the ``precision`` asked for.
    """
    precision = choose_precision(arguments)
    before = model.config._attn_implementation
    chosen, packing = choose_attention(arguments, model, precision)
    full = arguments.method == "full"
    # Full training keeps its master weights in fp32, or its small steps are rounded away (the tutorials' plain bf16
    # weights: docs/benchmarks.md); a base that only carries adapters may stay small, and is not cast at each step.
    dtype = torch.float32 if full else DTYPES[precision]
    shared = distributed.world_size()
    tokens, longest = _in_a_batch(arguments, dataset, packing)
    needed = memory.estimate(
        model,
        dtype=dtype,
        compute=DTYPES[precision],
        adapters=None if full else arguments.lora_r,
        tokens=tokens,
        longest=longest,
        quadratic=chosen in ("eager", attention.NAME),
        shared={"none": (1, 1), "zero2": (1, shared)}.get(arguments.sharding, (shared, shared)),
    )
    free = memory.available()
    checkpointing = arguments.activation_checkpointing
    if checkpointing is None:
        # It costs a second forward pass: a third more work when all is trained, half more with adapters.
        checkpointing = needed.total(False) > memory.ROOM * free
    _say(
        precision=precision,
        attention=chosen,
        packing=str(packing).lower(),
        checkpointing=str(checkpointing).lower(),
        estimated_gb=f"{needed.total(False) / memory.GIGABYTE:.2f}",
        estimated_gb_checkpointing=f"{needed.total(True) / memory.GIGABYTE:.2f}",
        available_gb=f"{free / memory.GIGABYTE:.2f}",
    )
    return Choices(
        dtype=dtype,
        precision=precision,
        attention=chosen,
        attention_before=before,
        packing=packing,
        checkpointing=checkpointing,
        per_device_batch=int(arguments.batch_size or 1),
        accumulation=arguments.gradient_accumulation,
        sft_options={
            "bf16": precision == "bf16",
            "fp16": precision == "fp16",  # the Trainer scales the gradients
            "packing": False,
            "padding_free": packing,
            "max_length": None,  # data.tokenize has cut them
            "activation_checkpointing": checkpointing,
            "optim": "adamw_torch_fused",
        },
    )


def choose_precision(arguments: FineTuneArguments) -> str:
    """Return bf16, fp16 or fp32; raises FineTuneError when the device cannot do the one asked for."""
    asked, cuda = arguments.precision, torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "this CPU"
    if asked == "bf16" and not computes_bf16():
        other = "fp16" if cuda else "fp32"
        raise FineTuneError(f"{device} does not compute in bf16; set precision to auto, which takes {other} there")
    if asked == "fp16" and not cuda:
        raise FineTuneError("precision fp16 needs a GPU; set it to auto")
    if asked != "auto":
        return asked
    if computes_bf16():
        return "bf16"
    return "fp16" if cuda else "fp32"  # a V100 has tensor cores for fp16 only


def choose_attention(arguments: FineTuneArguments, model: "PreTrainedModel", precision: str) -> tuple[str, bool]:
    """Return the attention's name, and whether the records of a batch are laid end to end without padding.

    - on a GPU flash-attention 2, where its package and an Ampere or newer GPU are (its own requirement): it is made for
      packed rows. Without it sdpa on padded batches, the library's default.
    - on a CPU ``documents`` (training/attention.py), measured the fastest there.
    - a model with an attention of its own kind is trained as its authors load it, on padded batches.
    """
    from transformers.utils import is_flash_attn_2_available

    before = model.config._attn_implementation
    if not arguments.packing:
        return before, False
    config = model.config.get_text_config()
    ordinary = (
        getattr(model, "_supports_attention_backend", False)
        and getattr(model, "_supports_sdpa", False)
        and getattr(config, "attn_logit_softcapping", None) is None
        and set(getattr(config, "layer_types", None) or ["full_attention"]) <= {"full_attention", "sliding_attention"}
    )
    if torch.cuda.is_available():
        flash = is_flash_attn_2_available() and torch.cuda.get_device_capability() >= (8, 0)
        return ("flash_attention_2", True) if flash and precision != "fp32" else (before, False)
    return (attention.NAME, True) if ordinary else (before, False)


def prepare(model: "PreTrainedModel", choices: Choices) -> "PreTrainedModel":
    """Return the model as it will be trained. One in 4 bits keeps its number format."""
    attention.register()
    if choices.attention != model.config._attn_implementation:
        model.set_attn_implementation(choices.attention)
    return model if getattr(model, "is_loaded_in_4bit", False) else model.to(choices.dtype)


def adjust(trainer: "SFTTrainer") -> None:
    """Change the trainer, before it trains, in what no option of its does: qlora's adapters; loss and casts on a CPU.

    TRL casts adapters on 4 bits to bf16. Near 0.02 that counts in steps of 1.2e-4, about an update of Adam at the usual
    rates; and with precision fp16 torch's scaler takes no bf16 gradients (_amp_foreach_non_finite_check_and_unscale).
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base, "is_loaded_in_4bit", False):
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    if trainer.args.device.type != "cpu":
        return
    if loss.fits(base):
        loss.score_labelled_tokens(base)
    if base is not model:
        fewer_passes.fuse_adapters(base)
    elif trainer.args.bf16:
        fewer_passes.keep_activations_small(base)


def restore(model: "PreTrainedModel", choices: Choices) -> None:
    """Give the trained model the attention that it came with: it is about to answer, with padding and a cache."""
    fewer_passes.let_go(model)
    if model.config._attn_implementation != choices.attention_before:
        model.set_attn_implementation(choices.attention_before)


def _in_a_batch(arguments: FineTuneArguments, dataset: "Dataset", packing: bool) -> tuple[int, int]:
    """Return the most tokens that a forward pass sees, and the longest record's."""
    size = int(arguments.batch_size or 1)
    if not hasattr(dataset, "data"):  # a stream, whose lengths nobody knows yet
        return size * arguments.max_length, arguments.max_length
    import pyarrow.compute

    lengths = sorted(pyarrow.compute.list_value_length(dataset.data.column("input_ids")).to_pylist(), reverse=True)
    return (sum(lengths[:size]) if packing else size * lengths[0]), lengths[0]


def _say(**facts: Any) -> None:
    if is_first():
        print(" ".join(["phase=choices", *(f"{key}={value}" for key, value in facts.items())]), flush=True)
