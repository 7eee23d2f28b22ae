"""What a managed deployment is made of, by the recipe's ``serving``: machine, server, limits on requests, probes."""

import math
from typing import TYPE_CHECKING, Final, Literal

from . import live_record, machines, serving_environment
from .errors import UserError
from .recipe import Recipe
from .recipe.defaults import LIVE
from .runs import Run
from .settings import settings

if TYPE_CHECKING:
    from azure.ai.ml.entities import ManagedOnlineDeployment, ProbeSettings

MLFLOW: Final = "mlflow"
SCORING_PATH = "/score"  # of Azure's own inference server, which a deployment without an environment runs
# Azure's machines with NVIDIA GPUs; machines.yaml knows more of those that it has.
GPU_FAMILIES = ("standard_nc", "standard_nd", "standard_nv")
FIRST_LOOK = 10  # seconds after the start of the container


def instance_type(recipe: Recipe) -> str:
    """The machine that is to serve."""
    return recipe.serving.instance_type or settings().serving_instance_type


def server(recipe: Recipe) -> Literal["transformers", "vllm", "mlflow"]:
    """What is to serve; ``auto`` decided by the machine. vLLM has no kernels for V100s any more."""
    if recipe.serving.server != "auto":
        return recipe.serving.server
    known = machines.machine(instance_type(recipe))
    return "vllm" if _has_gpus(instance_type(recipe)) and not (known and known.volta) else "transformers"


def wire(recipe: Recipe) -> str:
    """``mlflow`` where the deployment takes the scoring payload; "" where it takes OpenAI's requests."""
    return MLFLOW if server(recipe) == MLFLOW else ""


def path(recipe: Recipe) -> str:
    """The path of the endpoint under which the deployment takes chats."""
    return SCORING_PATH if wire(recipe) else serving_environment.CHAT_PATH


def check(run: Run, recipe: Recipe) -> None:
    """Raises UserError when the model could not be served as the recipe has it; to be asked before it is trained."""
    name, key = instance_type(recipe), _key(recipe)
    if recipe.serving.server == "vllm" and not _has_gpus(name):
        raise UserError(
            f"`serving.server: vllm` needs a GPU, and {name} ({key}) has none: name a machine with one in"
            " serving.instance_type, such as Standard_NC24ads_A100_v4, or leave serving.server out."
        )
    if recipe.serving.server == "vllm" and (known := machines.machine(name)) and known.volta:
        raise UserError(
            f"`serving.server: vllm` has no kernels for the V100s of {name} ({key}): name a newer machine in"
            " serving.instance_type, or set serving.server: transformers."
        )
    allowed = _allow_list(run, recipe)
    if allowed is not None and name.lower() not in {each.lower() for each in allowed}:
        raise UserError(
            f"{name} ({key}) is not among the machines that the base model can be served on: name one of"
            f" {', '.join(allowed)} in serving.instance_type."
        )


def deployment(run: Run, recipe: Recipe, endpoint: str) -> "ManagedOnlineDeployment":
    """The deployment as it is to be created; registers its environment."""
    from azure.ai.ml.entities import ManagedOnlineDeployment, OnlineRequestSettings

    serving, kind = recipe.serving, server(recipe)
    return ManagedOnlineDeployment(
        name=run.deployment,
        endpoint_name=endpoint,
        model=f"azureml:{run.model}:{run.model_version}",
        environment=None if kind == MLFLOW else serving_environment.ensure(kind),
        # Only for the servers of ours. vLLM answers to no other name than this one.
        environment_variables={} if kind == MLFLOW else {"MODEL_NAME": run.model},
        instance_type=instance_type(recipe),
        instance_count=serving.instance_count,
        request_settings=OnlineRequestSettings(
            # The SDK writes whole seconds. It leaves a 0 out, for which Azure would put its default in; 1 ms it writes
            # as 0 s.
            request_timeout_ms=1000 * math.ceil(serving.request_timeout_seconds),
            max_queue_wait_ms=1000 * math.ceil(serving.max_queue_wait_seconds) or 1,
            # Azure's inference server has one worker, which takes one request after the other.
            max_concurrent_requests_per_instance=1 if kind == MLFLOW else serving.max_concurrent_requests,
        ),
        readiness_probe=_readiness(recipe),
        liveness_probe=_liveness(recipe),
        tags={"run_id": run.id, "model": run.model, "server": kind},
    )


def _readiness(recipe: Recipe) -> "ProbeSettings":
    """Given up after the time that the machine, the image and the model may take to start."""
    from azure.ai.ml.entities import ProbeSettings

    period = max(1, round(recipe.serving.probe_seconds))
    return ProbeSettings(
        initial_delay=FIRST_LOOK,
        period=period,
        timeout=max(1, round(recipe.serving.probe_timeout_seconds)),
        success_threshold=1,
        failure_threshold=_looks(recipe.serving.startup_minutes * 60, period),
    )


def _liveness(recipe: Recipe) -> "ProbeSettings":
    """It starts the container again, so it is asked only once the model must be there."""
    from azure.ai.ml.entities import ProbeSettings

    serving = recipe.serving
    period, failures = max(1, round(serving.probe_seconds)), serving.probe_failures
    if wire(recipe):
        # The one worker answers no probe while it answers a request.
        failures = max(failures, _looks(serving.request_timeout_seconds, period) + 1)
    return ProbeSettings(
        initial_delay=max(FIRST_LOOK, round(serving.startup_minutes * 60)),
        period=period,
        timeout=max(1, round(serving.probe_timeout_seconds)),
        success_threshold=1,
        failure_threshold=failures,
    )


def _looks(seconds: float, period: int) -> int:
    return max(1, math.ceil(seconds / period))


def _has_gpus(name: str) -> bool:
    known = machines.machine(name)
    return bool(known.gpus) if known else name.lower().startswith(GPU_FAMILIES)


def _key(recipe: Recipe) -> str:
    """Who has named the machine."""
    return "serving.instance_type" if recipe.serving.instance_type else "the app's SERVING_INSTANCE_TYPE"


def _allow_list(run: Run, recipe: Recipe) -> list[str] | None:
    """The machines that the registry's model is made for; None when the base is no registry's, or does not say."""
    from .engines import bases, pipeline
    from .engines.pipeline_inputs import literal

    base = recipe.base_model
    if base == LIVE:  # a chain of trainings by its beginning
        base = str((live_record.read(run.model) or {}).get("base_model") or "")
    if recipe.engine == "pipeline":
        model = pipeline.foundation_model(recipe)
    elif base.startswith("azureml:"):
        model = bases.registry_model(base)
    else:
        return None
    found, _ = literal(model.tags or {}, "inference_compute_allow_list", list)
    return None if found is None else [str(name) for name in found]
