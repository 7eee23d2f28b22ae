"""The cluster that a recipe asks for: looked at before anything is submitted, and made when it does not exist."""

import re
import time
from dataclasses import dataclass, field
from typing import Any

from azure.core.exceptions import ResourceNotFoundError

from .. import azure_clients
from ..errors import StepError, TransientError, UserError
from ..recipe import Recipe
from ..settings import settings
from .machines import Machine, check_quota, find_machine

READY_SECONDS = 60.0  # for which a cluster that was ready is not looked at again
MAX_NAME = 32  # characters of a compute's name
BROKEN = ("Failed", "Canceled")


@dataclass(frozen=True)
class Cluster:
    """A cluster that is there, and its machines."""

    name: str
    machine: Machine
    max_nodes: int
    low_priority: bool


@dataclass
class _Remembered:
    ready: dict[str, tuple[float, Cluster]] = field(default_factory=dict)  # until when, on the monotonic clock


_remembered = _Remembered()


def forget() -> None:
    """Look at every cluster anew."""
    _remembered.ready.clear()


def remembered() -> bool:
    return bool(_remembered.ready)


def cluster_name(recipe: Recipe) -> str:
    """The cluster's name: the recipe's own or, for other machines than the app's usual ones, one that says which.

    TRAINING_COMPUTE is for TRAINING_INSTANCE_TYPE, dedicated. A recipe that asks for another machine and names no
    cluster gets ``<TRAINING_COMPUTE>-nc24ads-a100-v4``, or ``…-low`` for low-priority nodes.
    """
    compute, usual = recipe.compute, settings().training_instance_type
    if compute.cluster:
        return compute.cluster
    asked = compute.instance_type or usual
    suffix = ""
    if asked.lower() != usual.lower():
        suffix = "-" + re.sub("[^a-z0-9]+", "-", asked.lower().removeprefix("standard_")).strip("-")
    suffix += "-low" if compute.tier == "low_priority" else ""
    return f"{settings().training_compute[: MAX_NAME - len(suffix)].rstrip('-')}{suffix}" if suffix else (
        settings().training_compute
    )  # fmt: skip


def check_cluster(recipe: Recipe) -> Machine:
    """The machine that the recipe will be trained on. Raises UserError for one that cannot be had."""
    compute = recipe.compute
    if cluster := _ready(cluster_name(recipe)):
        machine, low_priority = cluster.machine, cluster.low_priority
        _check_existing(recipe, cluster)
    elif (found := _find(cluster_name(recipe))) is not None:
        cluster = _seen(found)
        machine, low_priority = cluster.machine, cluster.low_priority
        _check_existing(recipe, cluster)
        if (state := azure_clients.plain(found.provisioning_state)) in BROKEN:
            raise UserError(_broken(cluster.name, state, found))
    else:
        machine, low_priority = _asked(recipe), compute.tier == "low_priority"
        if low_priority and not machine.low_priority:
            raise UserError(f"compute.tier is low_priority, but Azure has {machine.name} only as dedicated machines.")
    check_quota(machine, compute.instance_count, low_priority)
    return machine


def ensure_cluster(recipe: Recipe) -> Cluster:
    """A cluster that is ready, made when there is none. Raises TransientError until it is, StepError if it failed."""
    from azure.ai.ml.entities import AmlCompute

    name, compute = cluster_name(recipe), recipe.compute
    if cluster := _ready(name):
        return cluster
    found = _find(name)
    if found is None:
        azure_clients.ml_client().compute.begin_create_or_update(
            AmlCompute(
                name=name,
                size=_asked(recipe).name,
                tier=compute.tier,
                min_instances=0,
                max_instances=max(compute.max_nodes, compute.instance_count),
                idle_time_before_scale_down=round(60 * compute.idle_minutes),
                identity=azure_clients.user_assigned(settings().training_identity_id),
            )
        )
        found = _find(name)
        if found is None:  # Azure does not show it everywhere at once
            raise TransientError(f"the cluster {name} is being made")
    state = azure_clients.plain(found.provisioning_state)
    if state in BROKEN:
        raise StepError(_broken(name, state, found))
    if state != "Succeeded":
        raise TransientError(f"the cluster {name} is {state}")
    cluster = _seen(found)
    _remembered.ready[name] = (time.monotonic() + READY_SECONDS, cluster)
    return cluster


def _ready(name: str) -> Cluster | None:
    until, cluster = _remembered.ready.get(name, (0.0, None))
    return cluster if time.monotonic() < until else None


def _find(name: str) -> Any | None:
    try:
        return azure_clients.ml_client().compute.get(name)
    except ResourceNotFoundError:
        return None


def _seen(found: Any) -> Cluster:
    """Raises UserError for a compute that is no cluster."""
    if str(found.type).lower() != "amlcompute":
        raise UserError(
            f"The compute {found.name} is a {found.type}, and training needs a cluster; name another one in"
            " compute.cluster. One that does not exist is made."
        )
    return Cluster(
        found.name,
        find_machine(str(found.size), f"The size of the cluster {found.name}"),
        int(found.max_instances or 0),
        "low" in azure_clients.plain(found.tier).lower(),
    )


def _asked(recipe: Recipe) -> Machine:
    if name := recipe.compute.instance_type:
        return find_machine(name, "compute.instance_type")
    return find_machine(settings().training_instance_type, "The app setting TRAINING_INSTANCE_TYPE")


def _check_existing(recipe: Recipe, cluster: Cluster) -> None:
    """Raises UserError when an existing cluster is another than the recipe asks for."""
    compute, machine = recipe.compute, cluster.machine
    mend = "name another one in compute.cluster (it is made when it does not exist)"
    if compute.instance_type and compute.instance_type.lower() != machine.name.lower():
        raise UserError(
            f"The cluster {cluster.name} has machines of the size {machine.name}, and compute.instance_type asks for"
            f" {compute.instance_type}: {mend}, or leave compute.instance_type out."
        )
    if compute.tier == "low_priority" and not cluster.low_priority:
        raise UserError(
            f"The cluster {cluster.name} has dedicated machines, and compute.tier asks for low_priority: {mend}, or"
            " leave compute.tier out."
        )
    if compute.instance_count > cluster.max_nodes:
        raise UserError(
            f"compute.instance_count is {compute.instance_count}, but the cluster {cluster.name} grows to"
            f" {cluster.max_nodes}: raise its maximum in Azure ML, or {mend}."
        )


def _broken(name: str, state: str, found: Any) -> str:
    why = f" ({found.provisioning_errors})" if getattr(found, "provisioning_errors", None) else ""
    return (
        f"The cluster {name} could not be made: its state is {state}{why}. Delete it in Azure ML, or name another one"
        " in compute.cluster; a quota or a size that the region lacks is the usual reason."
    )
