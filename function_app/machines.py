"""What is known of base models and of Azure's machines before anything is started: machines.yaml, typed."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

TABLE = Path(__file__).with_name("machines.yaml")
# A core with AVX2 and two FMA units does 32 fp32 operations a cycle; 2.3 GHz is the v3 machines' base clock.
CORE_FLOPS = 2.3e9 * 32


class Base(msgspec.Struct, frozen=True):
    """A base model: its parameters, the tokens of its context, and (0: not known) what its memory depends on."""

    parameters: float
    context: int
    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    qkv: int = 0
    vocabulary: int = 0
    embeddings: float = 0.0


class Machine(msgspec.Struct, frozen=True):
    """An Azure machine: its GPUs (0: it computes with its cores), and of one device the memory in bytes and the peak
    FLOP/s by number format (0: not natively). ``volta``: its GPUs are V100s."""

    name: str
    gpus: int
    memory: float
    fp32: float
    fp16: float = 0.0
    bf16: float = 0.0
    volta: bool = False

    @property
    def emulates_bf16(self) -> bool:
        """Whether its GPUs have no units for bf16."""
        return bool(self.gpus and not self.bf16)

    @property
    def devices(self) -> int:
        """What a batch is shared out among: the GPUs, or the one processor."""
        return max(1, self.gpus)

    def peak(self, precision: str) -> float:
        """FLOP/s of one device in ``fp32``, ``fp16`` or ``bf16``; 0 where it has no units for it."""
        return {"fp32": self.fp32, "fp16": self.fp16, "bf16": self.bf16}[precision]

    def best_precision(self) -> str:
        """What ``precision: auto`` comes to on it (training/choices.py)."""
        return "bf16" if self.bf16 else "fp16" if self.gpus and self.fp16 else "fp32"


def machine(name: str | None) -> Machine | None:
    """The machine of that name, in any case of letters; None when the table has none."""
    return _machines().get((name or "").lower())


def base(name: str) -> Base | None:
    """The base by any part of its name: ``microsoft/Phi-4-mini-instruct``, or a registry's URI with a version."""
    found = last_known(name, _bases())
    return _bases()[found] if found else None


def last_known(name: str, table: dict[str, Any]) -> str | None:
    """The last part of a model's name that is a key of ``table``; None when none is."""
    return next((part for part in reversed(re.split(r"[/:\\]", name.lower())) if part in table), None)


@cache
def _table() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return loaded


@cache
def _bases() -> dict[str, Base]:
    # Not strict: YAML 1.1 takes 3.8e9 without a sign for a text.
    return msgspec.convert(_table()["bases"], dict[str, Base], strict=False)


@cache
def _machines() -> dict[str, Machine]:
    return {name.lower(): _machine(name, given) for name, given in _table()["machines"].items()}


def _machine(name: str, given: dict[str, Any]) -> Machine:
    if "gpu" not in given:
        return Machine(name, 0, float(given["memory"]) * 1e9, given["cores"] * CORE_FLOPS)
    gpu = _table()["gpus"][given["gpu"]]
    peaks = {precision: float(gpu.get(precision, 0)) * 1e12 for precision in ("fp32", "fp16", "bf16")}
    return Machine(name, given["gpus"], float(gpu["memory"]) * 1e9, **peaks, volta=bool(gpu.get("volta")))
