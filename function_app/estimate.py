"""What training on a file will take, reckoned from the recipe and the statistics before anything is spent."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .dataset.report import Estimate, Statistics
from .recipe import Recipe
from .recipe.defaults import EMBEDDED, effective

# The share of a machine's peak that the job reaches. PaLM (Chowdhery et al. 2022, table 3) reports 21 to 46 % of large
# trainings; one GPU with short records is rather at the lower end.
UTILISATION = 0.3
# Measured on the demo's file with two laptop cores, docs/interfaces.md. Larger machines are hardly faster: it is tiny.
EMBEDDED_TOKENS_PER_SECOND = 9000.0


class Base(NamedTuple):
    """A base model: its parameters, and the tokens of its context."""

    parameters: float
    context: int


class Machine(NamedTuple):
    """An Azure machine: peak FLOP/s of one device in fp32 and in bf16 (0: not natively), and its GPUs."""

    fp32: float
    bf16: float
    devices: int = 1


# By the last part of their name in lower case. From the models' config.json and model cards.
BASES = {
    EMBEDDED: Base(1.3e6, 4096),
    "phi-3-mini-4k-instruct": Base(3.8e9, 4096),
    "phi-3-mini-128k-instruct": Base(3.8e9, 131072),
    "phi-3.5-mini-instruct": Base(3.8e9, 131072),
    "phi-4-mini-instruct": Base(3.8e9, 131072),
}

# Without sparsity, from NVIDIA's data sheets. The job does not use TF32 or fp16, so a V100 and a T4 compute in fp32.
V100, T4 = Machine(15.7e12, 0), Machine(8.1e12, 0)
A100, H100_NVL, H100 = Machine(19.5e12, 312e12), Machine(60e12, 835e12), Machine(67e12, 989e12)
MACHINES = {
    "standard_nc6s_v3": V100,
    "standard_nc12s_v3": V100._replace(devices=2),
    "standard_nc24s_v3": V100._replace(devices=4),
    "standard_nc4as_t4_v3": T4,
    "standard_nc8as_t4_v3": T4,
    "standard_nc16as_t4_v3": T4,
    "standard_nc64as_t4_v3": T4._replace(devices=4),
    "standard_nc24ads_a100_v4": A100,
    "standard_nc48ads_a100_v4": A100._replace(devices=2),
    "standard_nc96ads_a100_v4": A100._replace(devices=4),
    "standard_nd96amsr_a100_v4": A100._replace(devices=8),
    "standard_nc40ads_h100_v5": H100_NVL,
    "standard_nc80adis_h100_v5": H100_NVL._replace(devices=2),
    "standard_nd96isr_h100_v5": H100._replace(devices=8),
    # A processor: cores (half the vCPUs) × 2.3 GHz × 32 FLOP a cycle, which is AVX2 with two FMA units.
    "standard_e4s_v3": Machine(2 * 2.3e9 * 32, 0),
    "standard_e8s_v3": Machine(4 * 2.3e9 * 32, 0),
    "standard_e16s_v3": Machine(8 * 2.3e9 * 32, 0),
    "standard_e32s_v3": Machine(16 * 2.3e9 * 32, 0),
}


def estimate(
    recipe: Recipe, statistics: Statistics, measured: float | None = None, instance_type: str | None = None
) -> Estimate:
    """Steps, tokens and about how long; ``seconds`` is None where nothing is known to reckon with.

    ``measured``: tokens per second of an earlier run with the same base, method and machine. ``instance_type``: the
    machine where the recipe names neither one nor a cluster. The steps are exact when no record is left out for its
    length; with packing, and with copies of files that have a system message in some records, about right.
    """
    options = effective(recipe)
    # The app's machine is that of the app's cluster; what a cluster of the recipe's own has is not known.
    name = recipe.compute.instance_type or ("" if recipe.compute.cluster else instance_type) or ""
    machine = MACHINES.get(name.lower())
    examples, tokens = _examples(statistics, options)
    epochs = float(options["epochs"])
    trained = round(tokens * epochs)
    seconds, basis = _seconds(recipe, options, trained, measured, machine, name)
    return Estimate(
        epochs=epochs,
        steps=_steps(examples, tokens, options, machine.devices if machine else 1),
        trained_tokens=trained,
        seconds=None if seconds is None else round(seconds, 1),
        basis=basis,
    )


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


def _steps(examples: int, tokens: float, options: dict[str, Any], devices: int) -> int:
    """The optimiser's steps, as training/trainer.py and transformers' Trainer count them: whole steps in an epoch."""
    batch, accumulation = options["batch_size"] * devices, options["gradient_accumulation"]
    if options["packing"]:  # a sequence is a forward pass of its own, and the batch becomes accumulation
        sequences = min(examples, math.ceil(tokens / options["max_length"]))
        batch, accumulation, examples = devices, accumulation * options["batch_size"], sequences
    in_epoch: int = math.ceil(math.ceil(examples / batch) / accumulation)
    return math.ceil(float(options["epochs"]) * in_epoch)


def _seconds(
    recipe: Recipe,
    options: dict[str, Any],
    tokens: int,
    measured: float | None,
    machine: Machine | None,
    machine_name: str,
) -> tuple[float | None, str]:
    """The time of the training alone (not of the machine's start and the measuring), and how it was reckoned."""
    if measured is not None and measured > 0:
        return tokens / measured, f"the {measured:,.0f} tokens/s of an earlier run"
    if recipe.base_model == EMBEDDED:
        speed = EMBEDDED_TOKENS_PER_SECOND
        return tokens / speed, f"{speed:,.0f} tokens/s, what two laptop cores reach"
    base = _known(recipe.base_model)
    if base is None:
        return None, "unknown: no earlier run, and the base model's size is not known here"
    if machine is None:
        return None, f"unknown: no earlier run, and the speed of {machine_name or 'the machine'} is not known here"
    bf16 = machine.bf16 > 0 and options["precision"] != "fp32"
    if options["precision"] == "bf16" and not bf16:
        return None, "unknown: no earlier run, and this machine only emulates bf16"
    # Kaplan et al. 2020, section 2.1: 2N FLOPs a token forward and 4N backward. Adapters need of the latter only the
    # gradients of the activations, 2N: the base's weights have none.
    a_token = (4 if recipe.method == "lora" else 6) * base.parameters
    peak = (machine.bf16 if bf16 else machine.fp32) * machine.devices
    basis = f"{a_token:.2g} FLOPs a token and {UTILISATION:.0%} of the {peak / 1e12:.3g} TFLOP/s"
    return tokens * a_token / (peak * UTILISATION), f"{basis} that {machine_name} has in {'bf16' if bf16 else 'fp32'}"


def context_limit(recipe: Recipe) -> int | None:
    """The tokens of the base model's context; None when it is not known here."""
    config = Path(recipe.base_model) / "config.json"
    try:
        if recipe.base_model != EMBEDDED and config.is_file():
            length = msgspec.json.decode(config.read_bytes(), type=_Config).max_position_embeddings
            return length if length and length > 0 else None
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    base = _known(recipe.base_model)
    return base.context if base else None


class _Config(msgspec.Struct):
    max_position_embeddings: int | None = None


def max_length(recipe: Recipe) -> int:
    """The tokens of a record that will be trained on; what is longer is cut."""
    return int(effective(recipe)["max_length"])


def _known(base_model: str) -> Base | None:
    """The base by any part of its name: ``microsoft/Phi-4-mini-instruct``, or a registry's URI with a version."""
    parts = re.split(r"[/:\\]", base_model.lower())
    return next((BASES[part] for part in reversed(parts) if part in BASES), None)
