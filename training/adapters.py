"""Low-rank adapters: on which layers they are, and how they become part of the weights."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from training.arguments import FineTuneArguments


def lora_config(arguments: FineTuneArguments) -> LoraConfig:
    """Return adapters of the rank that was asked for on every linear layer but the head."""
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def merged(tuned: Any, arguments: FineTuneArguments, adapter_folder: Path, stored_dtype: torch.dtype) -> Any:
    """Return the base of ``tuned``, a PEFT model, with the adapters added to its weights, these in ``stored_dtype``.

    ``adapter_folder`` holds the same adapters.
    """
    if arguments.method == "qlora":
        # Merged into 4 bits, the adapters would be rounded away; so first back to the numbers they were trained on.
        tuned = PeftModel.from_pretrained(tuned.unload().dequantize(), str(adapter_folder))
    # In fp32, and rounded once: what adapters add is small, and in the 16 bits of the training much of it would be lost
    # even where the model is stored in 32. One layer at a time, for all of them may not fit a GPU.
    with torch.no_grad():
        for layer in [module for module in tuned.modules() if isinstance(module, BaseTunerLayer)]:
            layer.get_base_layer().float()
            layer.merge()
            layer.get_base_layer().to(stored_dtype)
    return tuned.unload()
