"""The words of a job's life: its final states, why it failed, and where its artefacts lie."""

from .storage import DATASTORES, Location

FINAL = ("Completed", "Failed", "Canceled")


class JobError(Exception):
    """Why a job ended as Failed; the message is its error."""


def artifact_location(job: str, path: str) -> Location:
    """Where Azure ML keeps a job's artefacts: logs under ``user_logs/``, system outputs beside them."""
    return Location(DATASTORES["workspaceartifactstore"], f"ExperimentRun/dcid.{job}/{path}")
