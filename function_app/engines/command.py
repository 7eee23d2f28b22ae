"""The engine ``command``: our training code as a command job on an Azure ML cluster."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from .. import azure_clients
from ..errors import TransientError
from ..intake import input_url
from ..lifecycle import JobSeen
from ..recipe import Recipe
from ..runs import Run
from ..settings import settings

CODE = Path(__file__).resolve().parents[2] / "training"
LOG_TAIL_BYTES = 8192
LOG_TAIL_LINES = 12
IDLE_SECONDS = 300  # before the cluster gives an idle node back

COMMAND = (
    "python -m training.fine_tune --config ${{inputs.recipe}}"
    " --train_file ${{inputs.train}} --eval_file ${{inputs.eval}}"
    " --model_output ${{outputs.model}} --report_output ${{outputs.report}}"
)


def submit(run: Run, recipe: Recipe) -> str:
    """Submit the job under the run's id and return its page in the studio. One that exists already is left alone."""
    ml = azure_clients.ml_client()
    job = _existing(run.id)
    if job is None:
        cluster = _ensure_cluster(recipe)
        with tempfile.TemporaryDirectory() as folder:
            # The job runs `python -m training.fine_tune`, so the package's parent is what is uploaded.
            shutil.copytree(CODE, Path(folder) / CODE.name, ignore=shutil.ignore_patterns("__pycache__"))
            job = _job(run, recipe, cluster, folder)
            try:
                job = ml.jobs.create_or_update(job)
            except HttpResponseError as error:
                if "already exists" not in str(error):  # another invocation was faster
                    raise
                job = ml.jobs.get(run.id)
    return str(job.studio_url or "")


def observe(run: Run) -> JobSeen | None:
    """The job's status and, when it failed, the last lines of its log."""
    job = _existing(run.id)
    if job is None:
        return None
    status = azure_clients.plain(job.status)
    if status != "Failed":
        return JobSeen(status)
    return JobSeen(status, _log_tail(run.id) or f"it wrote no log; see {job.studio_url}")


def stopped(run: Run) -> bool:
    """Ask Azure ML to stop the job; True once it has ended (or never was)."""
    job = _existing(run.id)
    if job is None or job.status in ("Completed", "Failed", "Canceled"):
        return True
    if job.status != "CancelRequested":
        azure_clients.ml_client().jobs.begin_cancel(run.id)
    return False


def metrics(run: Run) -> bytes:
    """The job's metrics.json (docs/interfaces.md). Raises ResourceNotFoundError when the job wrote none."""
    outputs = azure_clients.datastore_container("workspaceblobstore")
    content: bytes = outputs.download_blob(f"azureml/{run.id}/report/metrics.json").readall()
    return content


def _existing(name: str) -> Any | None:
    try:
        return azure_clients.ml_client().jobs.get(name)
    except ResourceNotFoundError:
        return None


def _job(run: Run, recipe: Recipe, cluster: str, code: str) -> Any:
    from azure.ai.ml import Input, Output, command
    from azure.ai.ml.entities import Environment, ManagedIdentityConfiguration

    identity = settings().training_identity_id
    job = command(
        name=run.id,
        display_name=f"{run.model} from {run.dataset.blob.rpartition('/')[2]}",
        experiment_name=run.model,
        code=code,
        command=COMMAND,
        environment=Environment(image=settings().training_image, conda_file=CODE / "conda.yml"),
        compute=cluster,
        identity=ManagedIdentityConfiguration(resource_id=identity) if identity else None,
        inputs={
            name: Input(type="uri_file", path=input_url(run, file), mode="download") for name, file in _INPUTS.items()
        },
        outputs={"model": Output(type="mlflow_model"), "report": Output(type="uri_folder")},
        tags={"model": run.model, "run_id": run.id, "dataset": run.dataset.blob, "dataset_etag": run.dataset.etag},
    )
    job.set_limits(timeout=int(3600 * recipe.compute.max_hours))
    return job


_INPUTS = {"train": "train.jsonl", "eval": "eval.jsonl", "recipe": "recipe.json"}


def _ensure_cluster(recipe: Recipe) -> str:
    """The name of a cluster that is ready, made when there is none. Raises TransientError until it is."""
    from azure.ai.ml.entities import AmlCompute

    ml = azure_clients.ml_client()
    name = recipe.compute.cluster or settings().training_compute
    try:
        state = azure_clients.plain(ml.compute.get(name).provisioning_state)
    except ResourceNotFoundError:
        ml.compute.begin_create_or_update(
            AmlCompute(
                name=name,
                size=recipe.compute.instance_type or settings().training_instance_type,
                min_instances=0,
                max_instances=recipe.compute.max_nodes,
                idle_time_before_scale_down=IDLE_SECONDS,
                identity=azure_clients.user_assigned(settings().training_identity_id),
            )
        )
        state = azure_clients.plain(ml.compute.get(name).provisioning_state)
    if state != "Succeeded":
        raise TransientError(f"the cluster {name} is {state}")
    return name


def _log_tail(job: str) -> str:
    """The last lines of the job's log, read from where Azure ML keeps it."""
    blob = azure_clients.datastore_container("workspaceartifactstore").get_blob_client(
        f"ExperimentRun/dcid.{job}/user_logs/std_log.txt"
    )
    try:
        size = blob.get_blob_properties().size
        if not size:
            return ""
        start = max(0, size - LOG_TAIL_BYTES)
        raw = blob.download_blob(offset=start, length=size - start).readall()
    except ResourceNotFoundError:
        return ""
    # Progress lines say nothing of why it ended.
    lines = [line for line in raw.decode("utf-8", "replace").splitlines() if line and not line.startswith("progress ")]
    return "\n".join(lines[-LOG_TAIL_LINES:])
