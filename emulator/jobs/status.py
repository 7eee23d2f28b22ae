"""The words of a job's life: its states, why it failed, and where its artefacts lie."""

from ..storage import DATASTORES, Location

FINAL = ("Completed", "Failed", "Canceled")
UNFINISHED = (
    "NotStarted", "Starting", "Provisioning", "Queued", "Preparing", "Running", "Finalizing", "CancelRequested",
)  # fmt: skip


EXECUTION_LOG = "logs/azureml/executionlogs.txt"  # of a pipeline: which steps began and ended


class JobError(Exception):
    """Why a job ended as Failed; the message is its error."""


class JobTimeout(Exception):
    """The job ran longer than its limit, and is canceled, as the service does; the message says so."""


def artifact_location(job: str, path: str) -> Location:
    """Where Azure ML keeps a job's artefacts: logs under ``user_logs/``, system outputs beside them."""
    return Location(DATASTORES["workspaceartifactstore"], f"ExperimentRun/dcid.{job}/{path}")
