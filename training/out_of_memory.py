"""What to do when a training step does not fit the memory: the same step in smaller pieces."""

import dataclasses

import torch

from training import FineTuneError, distributed
from training.choices import Choices

# What CUDA's libraries and the CPU's allocator say; CUDA's own allocator raises torch.OutOfMemoryError.
SAID = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "not enough memory",
)
ADVICE = (
    "the memory is too small for this training even with one record at a time and activation checkpointing; "
    "lower max_length, use the method lora or qlora, or a larger machine"
)

OPTIMISER_ADVICE = (
    "the memory is too small for the optimiser's state, two numbers for each trained weight; "
    "use the method lora or qlora, a larger machine, or several with sharding: zero2, zero3 or fsdp"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in SAID)
    )


def smaller(choices: Choices) -> Choices:
    """Return the choices with half the micro-batch (and so twice the accumulation), the optimiser step as before.

    An odd one goes to its largest divisor below half. Of one record at a time, activations are recomputed. Raises
    FineTuneError when they already are.
    """
    batch = choices.per_device_batch
    if batch > 1:
        fewer = max(number for number in range(1, batch // 2 + 1) if batch % number == 0)
        return dataclasses.replace(
            choices, per_device_batch=fewer, accumulation=choices.accumulation * (batch // fewer)
        )
    if choices.checkpointing:
        raise FineTuneError(ADVICE)
    return with_checkpointing(choices)


def with_checkpointing(choices: Choices) -> Choices:
    """Return the choices with activations recomputed."""
    options = {**choices.sft_options, "activation_checkpointing": True}
    return dataclasses.replace(choices, checkpointing=True, sft_options=options)


def refuse_if_distributed(choices: Choices) -> None:
    """Raise FineTuneError where several processes train: the others wait in a collective call, and cannot turn back."""
    if distributed.world_size() == 1:
        return
    try:
        less = smaller(choices)
    except FineTuneError as error:
        raise FineTuneError(f"{ADVICE}; or sharding: zero3 or fsdp") from error
    advice = (
        f"set batch_size to {less.per_device_batch} and gradient_accumulation to {less.accumulation}"
        if less.per_device_batch < choices.per_device_batch
        else "set activation_checkpointing to true"
    )
    raise FineTuneError(
        f"a GPU's memory is too small for its share of a step; {advice}, or use sharding: zero3 or fsdp"
    )
