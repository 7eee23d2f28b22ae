"""The processes of a command job: how many, with which ranks, and the variables that Azure sets for each."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..config import HOST, free_port
from ..store import Json, Resource
from .nodes import job_nodes
from .status import JobError

if TYPE_CHECKING:
    from ..control import Control


@dataclass(frozen=True)
class Process:
    """One process of a job: on which node it counts, and the variables that tell it its place among the others."""

    node: int
    environment: dict[str, str] = field(default_factory=dict)


def processes_of(job: Resource) -> list[Process]:
    """What runs for a job, all of it on this machine. Raises JobError for a distribution that is not modelled.

    Azure's PyTorch distribution starts the command itself once for each process, with the variables that torchrun
    would set; a command that calls torchrun belongs into a job without a distribution.
    """
    nodes, distribution = job_nodes(job), job.properties.get("distribution") or {}
    kind = distribution.get("distributionType")
    if kind is None:
        # Guess: without a distribution the command runs once on each node
        return [Process(node, _node_variables(node, nodes)) for node in range(nodes)]
    if kind == "PyTorch":
        return _pytorch(nodes, int(distribution.get("processCountPerInstance") or 1))
    if kind == "TensorFlow":
        return _tensorflow(nodes, int(distribution.get("workerCount") or nodes), _parameter_servers(distribution))
    raise JobError(f"The distribution {kind} is not modelled by the local Azure.")


def _pytorch(nodes: int, each: int) -> list[Process]:
    port = str(free_port())
    return [
        Process(
            node,
            {
                **_node_variables(node, nodes),
                "MASTER_ADDR": HOST,
                "MASTER_PORT": port,
                "WORLD_SIZE": str(nodes * each),
                "NODE_RANK": str(node),
                "RANK": str(node * each + local),
                "LOCAL_RANK": str(local),
            },
        )
        for node in range(nodes)
        for local in range(each)
    ]


def _parameter_servers(distribution: Json) -> int:
    return int(distribution.get("parameterServerCount") or 0)


def _tensorflow(nodes: int, workers: int, servers: int) -> list[Process]:
    roles = [("worker", index) for index in range(workers)] + [("ps", index) for index in range(servers)]
    cluster: dict[str, list[str]] = {}
    for role, _ in roles:
        cluster.setdefault(role, []).append(f"{HOST}:{free_port()}")
    return [
        Process(
            number % nodes,
            {
                **_node_variables(number % nodes, nodes),
                "TF_CONFIG": json.dumps(
                    {"cluster": cluster, "task": {"type": role, "index": index}, "environment": "cloud"}
                ),
            },
        )
        for number, (role, index) in enumerate(roles)
    ]


def _node_variables(node: int, nodes: int) -> dict[str, str]:
    """By these a command that starts its own processes (torchrun, accelerate) finds its node and the first one."""
    return {
        "AZUREML_CR_NODE_RANK": str(node),
        "AZ_BATCHAI_JOB_MASTER_NODE_IP": HOST,
        "AZ_BATCH_NODE_LIST": ";".join([HOST] * nodes),
        "AZUREML_NODE_COUNT": str(nodes),
    }


def job_environment(control: "Control", job: Resource, paths: dict[str, dict[str, str]]) -> dict[str, str]:
    """The variables that all processes of a job have: where it runs, what it is, and its own ones last.

    ``paths``: what stands for its ``inputs`` and ``outputs``.
    """
    project, arm, mlflow = control.home.project, control.urls["arm"], control.urls["mlflow"]
    experiment, scope = job.properties["experimentName"], project.workspace_id
    return {
        "AZUREML_RUN_ID": job.name,
        "AZUREML_ROOT_RUN_ID": str(job.internal.get("parent_job") or job.name),
        "AZUREML_EXPERIMENT_ID": str(job.internal.get("mlflow_experiment", "")),
        "AZUREML_EXPERIMENT_SCOPE": f"{scope}/experiments/{experiment}",
        "AZUREML_WORKSPACE_SCOPE": scope,
        "AZUREML_WORKSPACE_NAME": project.workspace,
        "AZUREML_ARM_SUBSCRIPTION": project.subscription,
        "AZUREML_ARM_RESOURCEGROUP": project.resource_group,
        "AZUREML_ARM_WORKSPACE_NAME": project.workspace,
        "AZUREML_ARM_PROJECT_NAME": experiment,
        "AZUREML_SERVICE_ENDPOINT": arm,
        "AZUREML_DISCOVERY_SERVICE_ENDPOINT": f"{arm}/discovery",
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "MLFLOW_EXPERIMENT_ID": str(job.internal.get("mlflow_experiment", "")),
        "MLFLOW_RUN_ID": job.internal["mlflow_run"],
        **{f"AZURE_ML_INPUT_{name}": value for name, value in paths["inputs"].items()},
        **{f"AZURE_ML_OUTPUT_{name}": value for name, value in paths["outputs"].items()},
        **(job.properties.get("environmentVariables") or {}),
    }
