"""Azure's machines in the workspace's region: their GPUs and what these can do, and the quota there is for them."""

import difflib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .. import azure_clients
from ..errors import UserError

SIZES_SECONDS = 3600.0  # for which the region's list of sizes is not asked for again
USAGE_SECONDS = 60.0  # and the quota
# Sizes with GPUs older than Ampere, which only emulate bf16: K80, M60, P40, P100, V100 and T4.
# https://learn.microsoft.com/azure/virtual-machines/sizes/overview#gpu-accelerated
WITHOUT_BF16 = re.compile(
    r"standard_(nc\d+r?(_promo)?|nc\d+r?s_v[23]|nd\d+r?s|nd40rs_v2|nc\d+as_t4_v3|nv\d+|nv\d+a?s_v[234])", re.IGNORECASE
)


# Volta, which CUDA 13 has dropped: V100.
VOLTA = re.compile(r"standard_(nc\d+r?s_v3|nd40rs_v2)", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """One size: its GPUs, vCPUs, and memory in GB; ``low_priority``: whether Azure rents it out at that price."""

    name: str
    gpus: int
    vcpus: int
    memory: float
    family: str
    low_priority: bool

    @property
    def bf16(self) -> bool:
        """Whether its GPUs compute in bf16; of a machine without GPUs the job itself finds out."""
        return not WITHOUT_BF16.fullmatch(self.name)

    @property
    def volta(self) -> bool:
        """Whether its GPUs are V100s."""
        return bool(VOLTA.fullmatch(self.name))


@dataclass
class _Remembered:
    sizes: dict[str, Machine] = field(default_factory=dict)  # by the name in lower case
    usage: list[dict[str, Any]] = field(default_factory=list)
    sizes_until: float = 0.0  # on the monotonic clock
    usage_until: float = 0.0


_remembered = _Remembered()


def forget() -> None:
    """Ask Azure anew the next time."""
    global _remembered
    _remembered = _Remembered()


def find_machine(name: str, key: str) -> Machine:
    """The machine of that name. ``key``: of the recipe, or the setting, that names it.

    Raises UserError when the region has none.
    """
    sizes = _sizes()
    if machine := sizes.get(name.lower()):
        return machine
    close = difflib.get_close_matches(name.lower(), sizes, n=1)
    hint = f"did you mean `{sizes[close[0]].name}`?" if close else "`az ml compute list-sizes` shows those it has."
    raise UserError(f"{key} is `{name}`, but Azure ML has no machine of that name in the workspace's region; {hint}")


def _sizes() -> dict[str, Machine]:
    if time.monotonic() > _remembered.sizes_until:
        # vars(): the SDK's class declares other names than those that it gets from the service.
        rows = [vars(size) for size in azure_clients.ml_client().compute.list_sizes()]
        _remembered.sizes = {str(row["name"]).lower(): _machine(row) for row in rows}
        _remembered.sizes_until = time.monotonic() + SIZES_SECONDS
    return _remembered.sizes


def _machine(row: dict[str, Any]) -> Machine:
    return Machine(
        name=str(row["name"]),
        gpus=int(row.get("gpus") or 0),
        vcpus=int(row.get("vCPUs") or 0),
        memory=float(row.get("memoryGB") or 0),
        family=str(row.get("family") or ""),
        low_priority=bool(row.get("lowPriorityCapable", True)),
    )


def check_quota(machine: Machine, nodes: int, low_priority: bool) -> None:
    """Raises UserError when the subscription's quota can never hold ``nodes`` of the machine.

    What others use of it at the moment does not count: the job waits for that. No quota that is told: no objection.
    """
    if time.monotonic() > _remembered.usage_until:
        _remembered.usage = [vars(row) for row in azure_clients.ml_client().compute.list_usage()]
        _remembered.usage_until = time.monotonic() + USAGE_SECONDS
    if problem := shortage(_remembered.usage, machine, nodes, low_priority):
        raise UserError(problem)


def shortage(usage: Iterable[dict[str, Any]], machine: Machine, nodes: int, low_priority: bool) -> str:
    """Why the quota does not suffice; "" when it does, or says nothing.

    ``usage``: rows as Azure ML gives them, ``{"name": {"value", "localizedValue"}, "limit": vCPUs or -1}``. Dedicated
    machines count against their family's limit and the region's, low-priority ones against the region's alone.
    """
    needed = machine.vcpus * nodes
    tier = "lowpriority" if low_priority else "dedicated"
    for row in usage:
        names = row.get("name") or {}
        label = str(names.get("localizedValue") or names.get("value") or "")
        plain, limit = _letters(label), row.get("limit")
        of_family = not low_priority and machine.family and plain.startswith(_letters(machine.family) + "cluster")
        of_region = plain.startswith(f"totalcluster{tier}regional")
        if (of_family or of_region) and isinstance(limit, int) and 0 <= limit < needed:
            count = f"{nodes} × {machine.name}" if nodes > 1 else machine.name
            return (
                f"The quota is too small: {count} needs {needed} vCPUs, and the limit of '{label}' is {limit}; ask for"
                " more under Quotas in the Azure portal, or name a smaller machine in compute.instance_type."
            )
    return ""


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
