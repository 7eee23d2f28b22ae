"""What Azure keeps of a job besides its outputs: ``./outputs``, ``./logs`` and what it logged to MLflow.

In Azure a run's MLflow artefacts lie in the workspace's artefact store, and scripts register their model from there,
by ``azureml://jobs/<job>/outputs/artifacts/paths/<path>``. Here MLflow keeps them in its own folder, so they are copied
when the job ends.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .job_status import artifact_location
from .mlflow_runs import logged_models

if TYPE_CHECKING:
    from .control import Control
    from .store import Resource

KEPT = ("outputs", "logs")  # folders that Azure uploads from where the command ran


async def keep(control: "Control", job: "Resource", working_directory: Path) -> None:
    """Copy what ``job`` left behind to its place in the artefact store."""
    for name in KEPT:
        if (working_directory / name).is_dir():
            await control.storage.upload(working_directory / name, artifact_location(job.name, name))
    run, experiment = job.internal.get("mlflow_run"), job.internal.get("mlflow_experiment")
    if not run:
        return
    store = control.home.path / "mlflow" / "artifacts" / str(experiment)
    await control.storage.upload(store / str(run) / "artifacts", artifact_location(job.name, ""))
    # MLflow 3 keeps a logged model beside its run, not in it; Azure's MLflow, an older one, in it.
    for name, id in (await logged_models(control.urls["mlflow"], str(experiment), str(run))).items():
        await control.storage.upload(store / "models" / id / "artifacts", artifact_location(job.name, name))
