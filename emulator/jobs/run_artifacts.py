"""What a job logged to MLflow, copied to where Azure keeps it.

In Azure a run's MLflow artefacts lie in the workspace's artefact store, and scripts register their model from there,
by ``azureml://jobs/<job>/outputs/artifacts/paths/<path>``. Here MLflow keeps them in a folder of its own.
"""

from typing import TYPE_CHECKING

from .mlflow_runs import logged_models
from .status import artifact_location

if TYPE_CHECKING:
    from ..control import Control
    from ..store import Resource


async def keep(control: "Control", job: "Resource") -> None:
    """Copy the artefacts and models that ``job`` logged; doing it twice is doing it once."""
    run, experiment = job.internal.get("mlflow_run"), job.internal.get("mlflow_experiment")
    if not run:
        return
    store = control.home.path / "mlflow" / "artifacts" / str(experiment)
    await control.storage.upload(store / str(run) / "artifacts", artifact_location(job.name, ""))
    # MLflow 3 keeps a logged model beside its run, not in it; Azure's MLflow, an older one, in it.
    for name, id in (await logged_models(control.urls["mlflow"], str(experiment), str(run))).items():
        await control.storage.upload(store / "models" / id / "artifacts", artifact_location(job.name, name))
