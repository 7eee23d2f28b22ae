"""The engine ``command``: our training code as a command job on an Azure ML cluster."""

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from .. import azure_clients
from ..data_assets import register_splits
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
CLUSTER_SECONDS = 60  # for which a cluster that was ready is not looked at again

COMMAND = (
    "python -m training.fine_tune --config ${{inputs.recipe}}"
    " --train_file ${{inputs.train}} --eval_file ${{inputs.eval}}"
    " --model_output ${{outputs.model}} --report_output ${{outputs.report}}"
)


def submit(run: Run, recipe: Recipe) -> str:
    """Submit the job under the run's id and return its page in the studio. One that exists already is left alone."""
    job = _existing(run.id)
    if job is None:
        remembered = bool(_remembered.assets or _remembered.clusters)
        try:
            job = _create(run, recipe)
        except HttpResponseError as error:
            if not remembered or error.status_code not in (400, 404):
                raise
            # Perhaps something that is remembered has been deleted since: made again, in the same way as first.
            _remembered.forget()
            job = _create(run, recipe)
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


@dataclass
class _Remembered:
    """What stays the same from job to job, so that a thousand files do not upload the same code a thousand times."""

    assets: tuple[Any, Any] | None = None  # the ids of the code and of the environment
    clusters: dict[str, float] = field(default_factory=dict)  # until when, on the monotonic clock, each counts as ready
    uploading: Lock = field(default_factory=Lock)  # the first jobs of a process come all at once

    def forget(self) -> None:
        self.assets = None
        self.clusters.clear()


_remembered = _Remembered()


def _create(run: Run, recipe: Recipe) -> Any:
    """Submit the job, with what is remembered; upload what is not."""
    cluster = _ensure_cluster(recipe)
    inputs = {**register_splits(run), "recipe": input_url(run, "recipe.json")}
    with ExitStack() as stack:
        assets = _remembered.assets
        if assets is None:
            stack.enter_context(_remembered.uploading)
            # By now another thread may have uploaded them.
            assets = _remembered.assets or (_code_folder(stack), _environment())
        job = _job(run, recipe, cluster, inputs, *assets)
        made = _put(job)
        # The SDK has put the ids into the job that it was given; in what comes back they are short names.
        _remembered.assets = (str(job.code), str(job.environment))
    return made


def _put(job: Any) -> Any:
    """The job as Azure has it; one that another invocation has just submitted counts."""
    ml = azure_clients.ml_client()
    try:
        # The SDK's check by its schemas costs as much as all else here, for a job that always has the same shape.
        return ml.jobs.create_or_update(job, skip_validation=True)
    except HttpResponseError as error:
        if "already exists" not in str(error):
            raise
        return ml.jobs.get(job.name)


def _code_folder(stack: ExitStack) -> str:
    """A folder to upload. The job runs `python -m training.fine_tune`, so it holds the package, not its files."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    shutil.copytree(CODE, Path(folder) / CODE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _environment() -> Any:
    from azure.ai.ml.entities import Environment

    return Environment(image=settings().training_image, conda_file=CODE / "conda.yml")


def _job(run: Run, recipe: Recipe, cluster: str, inputs: dict[str, str], code: str, environment: Any) -> Any:
    """``code``: a folder, or the id of an asset; ``environment`` likewise."""
    from azure.ai.ml import Input, Output, command
    from azure.ai.ml.entities import ManagedIdentityConfiguration

    identity = settings().training_identity_id
    job = command(
        name=run.id,
        display_name=f"{run.model} from {run.dataset.blob.rpartition('/')[2]}",
        experiment_name=run.model,
        code=code,
        command=COMMAND,
        environment=environment,
        compute=cluster,
        identity=ManagedIdentityConfiguration(resource_id=identity) if identity else None,
        inputs={name: Input(type="uri_file", path=path, mode="download") for name, path in inputs.items()},
        outputs={"model": Output(type="mlflow_model"), "report": Output(type="uri_folder")},
        tags={"model": run.model, "run_id": run.id, "dataset": run.dataset.blob, "dataset_etag": run.dataset.etag},
    )
    job.set_limits(timeout=int(3600 * recipe.compute.max_hours))
    return job


def _ensure_cluster(recipe: Recipe) -> str:
    """The name of a cluster that is ready, made when there is none. Raises TransientError until it is."""
    from azure.ai.ml.entities import AmlCompute

    ml = azure_clients.ml_client()
    name = recipe.compute.cluster or settings().training_compute
    if time.monotonic() < _remembered.clusters.get(name, 0):
        return name
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
    _remembered.clusters[name] = time.monotonic() + CLUSTER_SECONDS
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
