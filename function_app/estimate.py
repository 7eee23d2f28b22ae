"""What training on a file will take, reckoned from the recipe and the statistics before anything is spent."""

import math
from pathlib import Path
from typing import Any

import msgspec

from .dataset.report import Estimate, Statistics
from .machines import base, machine
from .prices import cost
from .recipe import Recipe
from .recipe.defaults import EMBEDDED, effective

# The share of a machine's peak that the job reaches. PaLM (Chowdhery et al. 2022, table 3) reports 21 to 46 % of large
# trainings; one GPU with short records is rather at the lower end.
UTILISATION = 0.3
# Unpacking 4-bit weights in each pass makes a step longer by about this factor: 39 % in Raschka's runs of LoRA and
# QLoRA on the same model and GPU ("Practical tips for finetuning LLMs using LoRA", 2023).
QLORA_SLOWDOWN = 1.39
# Measured on the demo's file with two laptop cores, docs/interfaces.md. Larger machines are hardly faster: it is tiny.
EMBEDDED_TOKENS_PER_SECOND = 9000.0

# What the registry's chat_completion_pipeline takes for what a recipe leaves out, unless the model has defaults of its
# own (tutorial 001; function_app/engines/pipeline_inputs.py).
PIPELINE_DEFAULTS: dict[str, Any] = {"epochs": 3.0, "batch_size": 1}


def estimate(
    recipe: Recipe, statistics: Statistics, measured: float | None = None, instance_type: str | None = None
) -> Estimate:
    """Steps, tokens, about how long and how dear; ``seconds`` and ``cost`` are None where nothing is known of them.

    ``recipe``: with ``base_model: live`` replaced by the base that the live model came from, where that is known.
    ``measured``: tokens per second of an earlier run with the same base, method and machine. ``instance_type``: the
    machine where the recipe names neither one nor a cluster. The steps are exact when no record is left out for its
    length; with copies of files that have a system message in some records, about right.
    """
    options = _options(recipe)
    name = machine_name(recipe, instance_type)
    devices = _devices(recipe, name)
    examples, tokens = _examples(statistics, options)
    epochs = float(options["epochs"])
    trained = round(tokens * epochs)
    seconds, basis = _seconds(recipe, options, trained, measured, name)
    price = cost(recipe, seconds, trained, name)
    return Estimate(
        epochs=epochs,
        steps=_steps(examples, options, devices),
        trained_tokens=trained,
        seconds=None if seconds is None else round(seconds, 1),
        basis=basis,
        cost=price.expected,
        cost_limit=price.limit,
        cost_basis=price.basis,
    )


def _options(recipe: Recipe) -> dict[str, Any]:
    """Every hyperparameter with the value that the engine will use, as far as it is known here."""
    options = effective(recipe)
    if recipe.engine == "pipeline":
        given = recipe.training_options()
        options |= {name: value for name, value in PIPELINE_DEFAULTS.items() if name not in given}
    return options


def machine_name(recipe: Recipe, instance_type: str | None) -> str:
    """The machine that the job runs on, as far as it is known: the recipe's, or the app's; else ""."""
    # The app's machine is that of the app's cluster; what a cluster of the recipe's own has is not known.
    return recipe.compute.instance_type or ("" if recipe.compute.cluster else instance_type) or ""


def _devices(recipe: Recipe, machine_name: str) -> int:
    """What an optimiser step's records are shared out among: every GPU of every machine."""
    known = machine(machine_name)
    if recipe.engine == "service":
        return 1
    return recipe.compute.instance_count * (known.devices if known else 1)


def _examples(statistics: Statistics, options: dict[str, Any]) -> tuple[int, float]:
    """What one epoch trains on: examples, copies included, and their tokens after the cut at max_length."""
    records = statistics.train or statistics.records
    if not statistics.records:
        return 0, 0.0
    share = records / statistics.records
    copies = round(statistics.with_system * share) if options["copies_without_system"] else 0
    if statistics.format == "text":  # a long one is trained on in pieces, so nothing of it is lost
        return round(records * _pieces(statistics, options["max_length"])), statistics.tokens * share
    kept = _kept(statistics, options["max_length"])
    return records + copies, statistics.tokens * share * kept * (records + copies) / records


def _pieces(statistics: Statistics, max_length: int) -> float:
    """The pieces of at most ``max_length`` tokens that a text makes on average, by the histogram as in ``_kept``."""
    if statistics.record_tokens.max <= max_length:
        return 1.0
    buckets = [(0.75 * int(bound), count) for bound, count in statistics.token_histogram.items()]
    return sum(math.ceil(tokens / max_length) * count for tokens, count in buckets) / statistics.records


def _kept(statistics: Statistics, max_length: int) -> float:
    """The share of the tokens that are left when records are cut at ``max_length``, by the histogram.

    A bucket's records are taken for three quarters of its bound, the middle between two powers of two.
    """
    if statistics.record_tokens.max <= max_length:
        return 1.0
    buckets = [(0.75 * int(bound), count) for bound, count in statistics.token_histogram.items()]
    whole = sum(tokens * count for tokens, count in buckets)
    return sum(min(tokens, max_length) * count for tokens, count in buckets) / whole if whole else 1.0


def _steps(examples: int, options: dict[str, Any], devices: int) -> int:
    """The optimiser's steps, as transformers' Trainer counts them: whole steps in an epoch.

    Packing changes how records are laid out in memory, not how many of them a step sees (training/choices.py).
    """
    batches = math.ceil(examples / (options["batch_size"] * devices))
    in_epoch: int = math.ceil(batches / options["gradient_accumulation"])
    return math.ceil(float(options["epochs"]) * in_epoch)


def _seconds(
    recipe: Recipe, options: dict[str, Any], tokens: int, measured: float | None, machine_name: str
) -> tuple[float | None, str]:
    """The time of the training alone (not of the machine's start and the measuring), and how it was reckoned."""
    if measured is not None and measured > 0:
        return tokens / measured, f"the {measured:,.0f} tokens/s of an earlier run"
    if recipe.engine == "service":
        return None, "unknown: no earlier run, and the service does not tell how fast it trains"
    if recipe.base_model == EMBEDDED:
        speed = EMBEDDED_TOKENS_PER_SECOND
        return tokens / speed, f"{speed:,.0f} tokens/s, what two laptop cores reach"
    model, computer = base(recipe.base_model), machine(machine_name)
    if model is None:
        return None, "unknown: no earlier run, and the base model's size is not known here"
    if computer is None:
        return None, f"unknown: no earlier run, and the speed of {machine_name or 'the machine'} is not known here"
    precision = computer.best_precision() if options["precision"] == "auto" else options["precision"]
    peak = computer.peak(precision) * _devices(recipe, machine_name)
    if not peak:
        return None, f"unknown: no earlier run, and this machine only emulates {precision}"
    a_token = _flops(recipe.method, options, model.parameters)
    slower = QLORA_SLOWDOWN if recipe.method == "qlora" else 1.0
    basis = f"{a_token:.2g} FLOPs a token and {UTILISATION:.0%} of the {peak / 1e12:.3g} TFLOP/s"
    basis += f" that {_counted(recipe, machine_name)} has in {precision}"
    basis += f", and {QLORA_SLOWDOWN - 1:.0%} longer for the 4-bit weights" if slower > 1 else ""
    return tokens * a_token / (peak * UTILISATION) * slower, basis


def _flops(method: str, options: dict[str, Any], parameters: float) -> float:
    """Floating-point operations for a trained token.

    Kaplan et al. 2020, section 2.1: 2N forward and 4N backward. Adapters need of the latter only the gradients of the
    activations, 2N: the base's weights have none. Checkpointing computes the forward pass twice.
    """
    passes = (6 if method == "full" else 4) + (2 if options["activation_checkpointing"] else 0)
    return passes * parameters


def _counted(recipe: Recipe, machine_name: str) -> str:
    count = recipe.compute.instance_count
    return f"{count} × {machine_name}" if count > 1 else machine_name


def context_limit(recipe: Recipe) -> int | None:
    """The tokens of the base model's context; None when it is not known here."""
    config = Path(recipe.base_model) / "config.json"
    try:
        if recipe.base_model != EMBEDDED and config.is_file():
            length = msgspec.json.decode(config.read_bytes(), type=_Config).max_position_embeddings
            return length if length and length > 0 else None
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    known = base(recipe.base_model)
    return known.context if known else None


class _Config(msgspec.Struct):
    max_position_embeddings: int | None = None


def max_length(recipe: Recipe) -> int:
    """The tokens of a record that will be trained on; what is longer is cut."""
    return int(effective(recipe)["max_length"])
