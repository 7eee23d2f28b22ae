"""Where an asset's files are: the many ways a client may say it, and the one in which the service stores it."""

import re

from ..jobs.status import artifact_location
from ..storage import UriError
from ..store import Resource
from .errors import bad_request
from .routing import Call

SHORT = re.compile(r"azureml://datastores/(?P<rest>.+)")
JOB_OUTPUT = re.compile(r"azureml://(?:.*/)?jobs/(?P<job>[^/]+)/outputs/(?P<output>[^/]+)(?:/paths)?/?(?P<path>.*)")
RUN = re.compile(r"runs:/(?P<job>[^/]+)/(?P<path>.+)")  # MLflow's way of naming a run's artifacts


def stored_uri(call: Call, uri: str, groups: str = "resourceGroups") -> tuple[str, str | None]:
    """The long form of ``uri``, and the job whose output it names, if it does. Raises ArmError.

    ``groups``: how the service writes this segment; it differs between models and data.
    """
    long_uri = call.control.references.long_uri
    if match := RUN.fullmatch(uri):
        return long_uri(artifact_location(_job(call, match["job"], uri).name, match["path"]), groups), match["job"]
    if match := JOB_OUTPUT.fullmatch(uri):
        job = _job(call, match["job"], uri)
        if match["output"] == "artifacts":
            return long_uri(artifact_location(job.name, match["path"]), groups), job.name
        try:
            # Guess: a model or data asset of a job's output shows the datastore path where the output lies.
            return long_uri(call.control.locate(uri), groups), job.name
        except UriError as error:
            raise bad_request(str(error)) from None
    if match := SHORT.fullmatch(uri):
        return f"{_workspace(call, groups)}/datastores/{match['rest']}", None
    return uri.replace("/resourcegroups/", f"/{groups}/") if uri.startswith("azureml://sub") else uri, None


def _job(call: Call, name: str, uri: str) -> Resource:
    job = call.control.store.get(f"{call.workspace_id}/jobs/{name}")
    if job is None:
        raise bad_request(f"'{uri}': there is no job {name} in this workspace.", "NotFound")
    return job


def _workspace(call: Call, groups: str) -> str:
    project = call.control.home.project
    return f"azureml://subscriptions/{project.subscription}/{groups}/{project.resource_group}/workspaces/{project.workspace}"
