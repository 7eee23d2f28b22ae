"""What a job and the jobs below it logged to MLflow, which keeps each job's metrics under the job's name."""

import math
from typing import Any
from urllib.parse import quote

from .. import azure_clients
from ..settings import settings

SCOPE = "https://management.azure.com/.default"
# What the Trainer of transformers calls them, whose reports the pipeline's steps log.
TRAIN_LOSS, EVAL_LOSS, TOKEN_RATE = ("train_loss", "loss"), ("eval_loss",), ("train_tokens_per_second",)


def of_pipeline(name: str) -> dict[str, float]:
    """The last value of every metric of the pipeline's jobs; a later step's wins. Empty when MLflow has none."""
    found: dict[str, float] = {}
    for job in [name, *_below(name)]:
        found |= of_job(job)
    return found


def _below(name: str) -> list[str]:
    found: list[str] = []
    for child in azure_clients.ml_client().jobs.list(parent_job_name=name):
        found += [child.name, *_below(child.name)]
    return found


def of_job(name: str) -> dict[str, float]:
    """The last value of each metric that a job logged; {} for a job that MLflow does not know."""
    from azure.core import PipelineClient
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy
    from azure.core.rest import HttpRequest, HttpResponse

    policies = [RetryPolicy(), BearerTokenCredentialPolicy(azure_clients.credential(), SCOPE)]
    url = f"{_tracking_url()}/api/2.0/mlflow/runs/get?run_id={quote(name)}"
    with PipelineClient[HttpRequest, HttpResponse](url, policies=policies) as client:
        response = client.send_request(HttpRequest("GET", url))
        if response.status_code == 404:
            return {}
        response.raise_for_status()
        metrics = (response.json().get("run") or {}).get("data", {}).get("metrics") or []
    return {str(each["key"]): float(each["value"]) for each in metrics}


def _tracking_url() -> str:
    """The workspace's MLflow server beside its other services, where the SDK too finds run history."""
    ml, known = azure_clients.ml_client(), settings()
    scope = (
        f"/subscriptions/{known.subscription_id}/resourceGroups/{known.resource_group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{known.workspace}"
    )
    return f"{str(ml.jobs._api_url).rstrip('/')}/mlflow/v1.0{scope}"


def as_report(metrics: dict[str, float]) -> dict[str, Any]:
    """The metrics under the names of metrics.json (docs/interfaces.md); what was not measured is not there."""
    train = {"loss": _first(metrics, TRAIN_LOSS), "tokens_per_second": _first(metrics, TOKEN_RATE)}
    loss = _first(metrics, EVAL_LOSS)
    tuned = None if loss is None else {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else None}
    return {
        "train": {name: value for name, value in train.items() if value is not None},
        "eval": {"tuned": tuned} if tuned else None,
    }


def _first(metrics: dict[str, float], names: tuple[str, ...]) -> float | None:
    return next((metrics[name] for name in names if name in metrics and math.isfinite(metrics[name])), None)
