"""A recipe as inputs of the registry's chat_completion_pipeline: what its keys mean there."""

import ast
import math
from collections.abc import Mapping
from typing import Any

from ..recipe import Recipe

# The component's starting point, as Microsoft's own notebook gives it (shared tutorials, 001).
DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "learning_rate": 5e-6,
    "lr_scheduler_type": "cosine",
    "apply_lora": "true",
    "apply_deepspeed": "true",
    "deepspeed_stage": 2,
}
# Keys of `training` that have the same meaning under another name there.
SAME = {
    "learning_rate": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "max_length": "max_seq_length",
    "lr_scheduler": "lr_scheduler_type",
    "weight_decay": "weight_decay",
    "seed": "seed",
    "lora_r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
}
SHARDING: dict[str, dict[str, Any]] = {
    "none": {"apply_deepspeed": "false"},
    "zero2": {"apply_deepspeed": "true", "deepspeed_stage": 2},
    "zero3": {"apply_deepspeed": "true", "deepspeed_stage": 3},
}
PRECISION: dict[str, dict[str, Any]] = {"auto": {}, "fp32": {"precision": 32}, "fp16": {"precision": 16}}
# GPUs that are too small, for a model that does not say which suit it: K80 (tutorial 001).
DENIED = ("standard_nc6", "standard_nc12", "standard_nc24", "standard_nc24r")
MAX_LITERAL = 20_000  # characters of a tag that is parsed


def finetune_parameters(
    recipe: Recipe, of_model: Mapping[str, Any], types: Mapping[str, str], records: int, devices: int
) -> tuple[dict[str, Any], list[str]]:
    """The component's inputs that say how to train, and notes on what was left out.

    The recipe's own keys win over the model's (``of_model``), and these over DEFAULTS. ``types``: the component's
    inputs with their types; ``records``, ``devices``: to train on, for the steps of the warm-up.
    """
    notes: list[str] = []
    given = dict(DEFAULTS)
    for name, value in of_model.items():
        if name not in types:
            notes.append(f"{name} of the model's defaults is no input of the component")
            continue
        try:
            given[name] = as_type(value, types[name])
        except (ValueError, OverflowError):
            notes.append(f"{name} of the model's defaults is no {types[name]} and was ignored")
    given |= own_parameters(recipe)
    if recipe.training.warmup is not None:
        counts = (given["per_device_train_batch_size"], given.get("gradient_accumulation_steps", 1))
        batch = devices * math.prod(max(1, int(count)) for count in counts)
        steps = math.ceil(records / batch) * int(given["num_train_epochs"])
        given["warmup_steps"] = round(recipe.training.warmup * steps)
    notes += [f"the component has no input {name}" for name in given if name not in types]
    return {name: as_type(value, types[name]) for name, value in given.items() if name in types}, notes


def own_parameters(recipe: Recipe) -> dict[str, Any]:
    """The inputs that the recipe itself decides; the method always does, because a recipe always has one."""
    training = recipe.training
    given: dict[str, Any] = {"apply_lora": "false" if recipe.method == "full" else "true"}
    given |= {there: value for here, there in SAME.items() if (value := getattr(training, here)) is not None}
    if training.epochs is not None:
        given["num_train_epochs"] = int(training.epochs)
    if training.lr_scheduler == "constant" and training.warmup:
        given["lr_scheduler_type"] = "constant_with_warmup"
    given |= SHARDING.get(training.sharding or "", {})
    given |= PRECISION.get(training.precision or "", {})
    if training.eval_every is not None:
        often = training.eval_every < 1
        given["evaluation_strategy"] = "steps" if often else "epoch"
        given |= {"evaluation_steps_interval": training.eval_every} if often else {}
    if training.early_stopping is not None:
        given["apply_early_stopping"] = "true" if training.early_stopping else "false"
        given |= {"early_stopping_patience": training.early_stopping} if training.early_stopping else {}
    return given


def as_type(value: Any, type: str) -> Any:
    """The value as the component's input takes it: its switches are texts, "true" and "false"."""
    if type == "string":
        return str(value).lower() if isinstance(value, bool) else str(value)
    if type == "integer":
        return int(float(value))
    return float(value) if type == "number" else value


def literal(tags: Mapping[str, str], name: str, kind: type) -> tuple[Any, str]:
    """The tag's value as a Python literal of that kind, and "" or why it is ignored. Nothing in it is ever run.

    Models carry ``finetune_compute_allow_list`` (a list) and ``model_specific_defaults`` (a dict of scalars) so.
    """
    text = tags.get(name)
    if text is None:
        return None, ""
    if len(text) > MAX_LITERAL:
        return None, f"the model's tag {name} is too long and was ignored"
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None, f"the model's tag {name} cannot be read and was ignored"
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    scalars = all(isinstance(each, str | int | float | bool) for each in inner)
    if not isinstance(value, kind) or not scalars or (isinstance(value, dict) and not all(map(_is_name, value))):
        return None, f"the model's tag {name} is no {kind.__name__} of plain values and was ignored"
    return value, ""


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier()


def unsuitable(machine: str, allowed: list[Any] | None) -> str:
    """Why the component cannot train this model on the machine; "" when it can."""
    if allowed is not None:
        if machine.lower() in {str(name).lower() for name in allowed}:
            return ""
        return (
            f"{machine} is not among the machines that the model can be fine-tuned on: {', '.join(map(str, allowed))}"
        )
    return f"{machine} has GPUs that are too small for fine-tuning" if machine.lower() in DENIED else ""


def display_name(model: str, dataset: str, given: Mapping[str, Any], gpus: int, nodes: int) -> str:
    """The pipeline's display name, by the tutorial's formula."""
    batch = int(given.get("per_device_train_batch_size", 1)) * int(given.get("gradient_accumulation_steps", 1))
    deepspeed = f"ds{given.get('deepspeed_stage', 2)}" if given.get("apply_deepspeed") == "true" else "nods"
    lora = "lora" if given.get("apply_lora") == "true" else "nolora"
    parts = [
        model,
        dataset,
        f"bs{batch * gpus * nodes}",
        str(given.get("lr_scheduler_type", "linear")),
        deepspeed,
        lora,
        f"save_limit{given.get('save_total_limit', -1)}",
        f"seqlen{given.get('max_seq_length', -1)}",
    ]
    return "-".join(parts)
