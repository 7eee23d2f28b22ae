"""What a job of this project's training has measured and written: metrics.json, and the evaluation for people."""

import logging
from itertools import accumulate
from typing import Any

import msgspec
from azure.core.exceptions import ResourceNotFoundError

from .. import azure_clients
from ..errors import StepError
from ..runs import Run
from ..settings import settings

log = logging.getLogger("function_app.engines")

EVALUATION = "evaluation.md"
SAMPLES_BYTES = 1 << 18  # of the samples in a run's record, which is read at every step; the report has them all
SHOWN = {".md": "text/markdown; charset=utf-8", ".png": "image/png"}
MAX_SHOWN = 16 << 20  # bytes of one file; plots have a hundredth of it


class _Scores(msgspec.Struct):
    loss: float | None = None


class _Sample(msgspec.Struct):
    messages: list[dict[str, Any]]


class _Metrics(msgspec.Struct):
    """What the app itself reads of metrics.json, by its types; the rest is for people."""

    base_model: str | None = None
    context_length: int | None = None
    train: dict[str, Any] | None = None
    eval: dict[str, _Scores | None] | None = None
    samples: list[_Sample] | None = None


def metrics(run: Run) -> dict[str, Any]:
    """The job's metrics.json (docs/interfaces.md), with as many of its samples as a run's record can hold.

    Raises StepError when there is none, or none that can be read.
    """
    outputs = azure_clients.datastore_container("workspaceblobstore")
    try:
        content = outputs.download_blob(f"{_report(run)}metrics.json").readall()
        found = msgspec.json.decode(content, type=dict[str, Any])
        msgspec.convert(found, _Metrics)
    except ResourceNotFoundError:
        raise StepError("the training job completed but wrote no metrics.json") from None
    except msgspec.MsgspecError as error:
        raise StepError(f"the training job's metrics.json cannot be read: {error}") from None
    sizes = accumulate(len(msgspec.json.encode(sample)) for sample in found.get("samples") or [])
    kept = sum(size <= SAMPLES_BYTES for size in sizes)
    return {**found, "samples": (found.get("samples") or [])[:kept]}


def publish_evaluation(run: Run) -> None:
    """Copy evaluation.md and its plots to ``reports/<run-id>/``, and link it, if the job wrote one."""
    from azure.storage.blob import ContentSettings

    outputs = azure_clients.datastore_container("workspaceblobstore")
    reports = azure_clients.container(settings().reports_container)
    for blob in outputs.list_blobs(name_starts_with=_report(run)):
        name = blob.name.removeprefix(_report(run))
        kind = SHOWN.get(name[name.rfind(".") :])
        if "/" in name or kind is None or blob.size > MAX_SHOWN:
            continue
        content = outputs.download_blob(blob.name).readall()
        reports.upload_blob(
            f"{run.id}/{name}", content, overwrite=True, content_settings=ContentSettings(content_type=kind)
        )
        if name == EVALUATION:
            run.links["evaluation"] = f"{reports.url}/{run.id}/{name}"
    log.info("evaluation run_id=%s published=%s", run.id, "evaluation" in run.links)


def _report(run: Run) -> str:
    """The job's output ``report``, below the workspace's default datastore."""
    return f"azureml/{run.job}/report/"
