"""What is the same for the job of every engine: submitted once, observed, stopped, and the end of its log."""

import re
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError

from .. import azure_clients
from ..observation import JobSeen
from ..runs import Run

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

ENDED = ("Completed", "Failed", "Canceled")
LOG_TAIL_BYTES = 8192
LOG_TAIL_LINES = 12
LOGS_READ = 64  # of a job with many processes
ERROR = "error: "  # before the sentence with which the training ends (docs/interfaces.md)
# What a process says that ended only because another one had failed (training/distributed.py).
OF_ANOTHER = re.compile(rf"{ERROR}.* has failed, so process \d+ ends")
# How Python and many programs end a log: ValueError: …
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")
SILENT = "it ended without a word of why, as when the machine's memory runs out or the process is killed"
PROGRESS = ("progress ", "eval ")  # lines that say nothing of why it ended
MAX_SENTENCE = 500  # characters


def existing(name: str) -> Any | None:
    try:
        return azure_clients.ml_client().jobs.get(name)
    except ResourceNotFoundError:
        return None


def put(job: Any, **more: Any) -> Any:
    """The job as Azure has it; one that another invocation has just submitted counts."""
    ml = azure_clients.ml_client()
    try:
        # The SDK's check by its schemas costs as much as all else here, for a job that always has the same shape.
        return ml.jobs.create_or_update(job, skip_validation=True, **more)
    except HttpResponseError as error:
        if "already exists" not in str(error):
            raise
        return ml.jobs.get(job.name)


def observe(run: Run) -> JobSeen | None:
    """The job's status and, when it failed, one sentence and the last lines of its log, or of its failed child's."""
    job = existing(run.job)
    if job is None:
        return None
    status = azure_clients.plain(job.status)
    if status != "Failed":
        return JobSeen(status)
    return JobSeen(status, failure(run.job) or f"it wrote no log; see {job.studio_url}")


def stopped(run: Run) -> bool:
    """Ask Azure ML to stop the job; True once it has ended (or never was)."""
    job = existing(run.job)
    if job is None or job.status in ENDED:
        return True
    if job.status != "CancelRequested":
        azure_clients.ml_client().jobs.begin_cancel(run.job)
    return False


def failure(name: str) -> str:
    """Why a failed job failed: a sentence, then the end of the log that says so. "" when nothing says anything."""
    for failed in [name, *failed_children(name)][::-1]:  # the innermost is what went wrong
        lines = _log_tail(failed)
        if lines:
            line = _telling(lines)
            others = [each for each in lines if each != line]
            sentence = line.removeprefix(ERROR) or _service_error(failed) or SILENT
            return "\n".join([sentence, *(["the log ends:", *others] if others else [])])
    return _service_error(name)


def _telling(lines: list[str]) -> str:
    """The line that says why it ended; "" when none does."""
    own = next((line for line in reversed(lines) if line.startswith(ERROR)), "")
    return own or next((line for line in reversed(lines) if EXCEPTION.match(line)), "")


def failed_children(name: str) -> list[str]:
    """The failed jobs below a failed job, the outer ones first."""
    found: list[str] = []
    for child in azure_clients.ml_client().jobs.list(parent_job_name=name):
        if azure_clients.plain(child.status) == "Failed":
            found += [child.name, *failed_children(child.name)]
    return found


def _log_tail(job: str) -> list[str]:
    """The last lines of the job's log, read from where Azure ML keeps it. A job of several processes has several:
    the one that tells an error of its own counts, because the others only tell that it has failed."""
    artifacts = azure_clients.datastore_container("workspaceartifactstore")
    names = sorted(blob.name for blob in artifacts.list_blobs(name_starts_with=f"ExperimentRun/dcid.{job}/user_logs/"))
    others: list[str] = []
    for name in [each for each in names if each.endswith(".txt")][:LOGS_READ]:
        lines = _last_lines(artifacts, name)
        if any(line.startswith(ERROR) and not OF_ANOTHER.match(line) for line in lines):
            return lines
        others = others or lines
    return others


def _last_lines(container: "ContainerClient", name: str) -> list[str]:
    blob = container.get_blob_client(name)
    size = blob.get_blob_properties().size
    if not size:
        return []
    start = max(0, size - LOG_TAIL_BYTES)
    raw: bytes = blob.download_blob(offset=start, length=size - start).readall()
    lines = [line for line in raw.decode("utf-8", "replace").splitlines() if line and not line.startswith(PROGRESS)]
    return lines[-LOG_TAIL_LINES:]


def _service_error(name: str) -> str:
    """What Azure ML itself says of a job that never got as far as a log: an input that is missing, an image."""
    try:
        # The SDK shows it in `stream` alone, and has no public call for it.
        details = azure_clients.ml_client().jobs._runs_operations.get_run_details(name)
    except AzureError:
        return ""
    error = getattr(getattr(details, "error", None), "error", None)
    return " ".join(str(getattr(error, "message", "") or "").split())[:MAX_SENTENCE]
