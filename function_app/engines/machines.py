"""Azure's machines in the workspace's region: their GPUs and what these can do, and the quota there is for them."""

import difflib
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from azure.core.exceptions import HttpResponseError

from .. import azure_clients, machines
from ..errors import UserError

log = logging.getLogger("function_app.engines")

SIZES_SECONDS = 3600.0  # for which the region's list of sizes is not asked for again
USAGE_SECONDS = 60.0  # and the quota
# Both lists are of the subscription, which an identity that has its role on the workspace alone may not read.
UNTOLD = (403, 404)


@dataclass(frozen=True)
class Machine:
    """One size: its GPUs, vCPUs (0: not known), and memory in GB; ``low_priority``: whether Azure rents it out so."""

    name: str
    gpus: int
    vcpus: int
    memory: float
    family: str
    low_priority: bool

    @property
    def known(self) -> machines.Machine:
        """What its GPUs can do, by machines.yaml; of one that is not there everything: the job itself finds out."""
        return machines.machine(self.name) or machines.Machine(self.name, self.gpus, 0.0, 1.0, 1.0, 1.0)


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

    Raises UserError when the region has none. Where Azure does not let the app read the region's list, machines.yaml
    has to do; for a machine that is not in it Azure's refusal is raised.
    """
    try:
        sizes = _sizes()
    except HttpResponseError as error:
        known = machines.machine(name)
        if error.status_code not in UNTOLD or known is None:
            raise
        log.warning("sizes status=%d: machines.yaml is used", error.status_code)
        return Machine(known.name, known.gpus, 0, known.memory / 1e9, "", True)
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
        try:
            _remembered.usage = [vars(row) for row in azure_clients.ml_client().compute.list_usage()]
        except HttpResponseError as error:
            if error.status_code not in UNTOLD:
                raise
            log.warning("quota status=%d: not checked", error.status_code)
            _remembered.usage = []
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
