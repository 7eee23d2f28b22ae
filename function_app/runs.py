"""The run record and its store: a JSON blob for each run, changed only by compare-and-swap on its ETag."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties, ContainerClient

log = logging.getLogger("function_app.runs")


class Stage(StrEnum):
    """Where a run is. The first ten come in this order; then it stays ``live`` until ``retired``, or ended before."""

    RECEIVED = "received"
    VALIDATED = "validated"
    TRAINING = "training"
    TRAINED = "trained"
    APPROVED = "approved"
    REGISTERED = "registered"
    DEPLOYING = "deploying"
    VERIFYING = "verifying"
    SHIFTING = "shifting"
    LIVE = "live"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    RETIRED = "retired"


LATE = timedelta(minutes=2)  # a message that is this much overdue is lost
LONGEST_INVOCATION = timedelta(minutes=12)  # host.json's functionTimeout, and something for the clocks
PAGE = 500  # blobs that are asked for at once in a listing
ENDS = frozenset({Stage.LIVE, Stage.REJECTED, Stage.FAILED, Stage.CANCELLED, Stage.SUPERSEDED, Stage.RETIRED})


class Event(msgspec.Struct, frozen=True):
    """One line of a run's history."""

    at: datetime
    stage: Stage
    reason: str


class Ask(msgspec.Struct, frozen=True):
    """What a person (or the app's own watch, for ``retire``) asks of a run; the state machine answers it."""

    action: Literal["approve", "reject", "cancel", "retry", "retire"]
    by: str
    at: datetime
    note: str = ""

    @property
    def in_words(self) -> str:
        """``by alice: looks right``."""
        return f"by {self.by}: {self.note}" if self.note else f"by {self.by}"


class DatasetVersion(msgspec.Struct, frozen=True):
    """One version of one dropped file. ``blob`` is its name in the datasets container, ``etag`` without quotes."""

    blob: str
    etag: str
    size: int
    uploaded_at: datetime


class Run(msgspec.Struct, kw_only=True):
    """One pass through the loop for one version of one dataset; or one way back to a model that served before.

    ``wake_at``: when the message that is under way arrives; ``waiting``: for what, in words. ``attempts``: of the
    present step, failures in a row; ``failures``: of all steps, the run's budget; ``tries``: requests of this stage
    that Azure took and that may have failed; ``revivals``: how often the run was taken out of the poison queue.
    ``fingerprint``: of the records and the recipe, by which a second drop of the same file is recognised.
    ``generation``: how often the job was begun anew. ``holds_turn``: it has the model's turn to release (turn.py).
    ``share``: percent of the endpoint's traffic that the run has asked for; ``checked``: the share at which the
    deployment was last found good. ``asked``: what a person wants and the run has not yet done. ``cleanup``, not
    before ``cleanup_at``: what an ended run has left to be deleted: its job, its deployment (after the traffic is
    back on the champion), the deployments that it has replaced, or the whole endpoint. ``outbox``: outcomes to be
    published. ``release_of``: the id of the run whose model a rollback releases again, under ``version``, in its
    deployment ``place`` where that is still there.
    """

    id: str
    model: str
    dataset: DatasetVersion
    received_at: datetime
    stage: Stage = Stage.RECEIVED
    history: list[Event] = []
    wake_at: datetime | None = None
    waiting: str = ""
    attempts: int = 0
    tries: int = 0
    failures: int = 0
    revivals: int = 0
    fingerprint: str = ""
    generation: int = 0
    holds_turn: bool = False
    share: int = 0
    checked: int = 0
    asked: Ask | None = None
    cleanup: Literal["", "job", "deployment", "replaced", "endpoint"] = ""
    cleanup_at: datetime | None = None
    outbox: list[str] = []
    release_of: str = ""
    version: str = ""
    place: str = ""
    recipe: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    links: dict[str, str] = {}

    @property
    def ended(self) -> bool:
        return self.stage in ENDS

    @property
    def unsettled(self) -> bool:
        """Whether an ended run still has something to do."""
        return bool(self.cleanup or self.outbox or self.asked)

    @property
    def suffix(self) -> str:
        """The 12 hex digits of the id; what has a short name in Azure is called by them."""
        return self.id.rpartition("-")[2]

    @property
    def job(self) -> str:
        """The job's name: the run's id, so that submitting twice is submitting once; with a number after a retry."""
        return f"{self.id}-{self.generation}" if self.generation else self.id

    @property
    def deployment(self) -> str:
        return self.place or f"r-{self.suffix}"

    @property
    def model_version(self) -> str:
        """The time of receipt to the millisecond: sorts, and stays the same however often it is registered."""
        return self.version or self.received_at.strftime("%Y%m%d%H%M%S") + f"{self.received_at.microsecond // 1000:03d}"

    @property
    def stage_since(self) -> datetime:
        return self.history[-1].at if self.history else self.received_at

    def move(self, stage: Stage, reason: str, now: datetime) -> None:
        """Enter a stage, with the reason for people to read."""
        self.stage = stage
        self.history = [*self.history, Event(now, stage, reason)]
        self.attempts = self.tries = 0
        self.asked = None
        self.wake_at, self.waiting = None, ""


def run_id(model: str, blob: str, etag: str) -> str:
    """The id of the run for one version of a file: the same file dropped once gives one run, whoever asks.

    The container-relative name is hashed, not the URL: an account that is renamed or fails over keeps its runs.
    """
    digest = sha256(f"{blob}\n{etag.strip(chr(34))}".encode()).hexdigest()
    return f"{model}-{digest[:12]}"


def new_run(model: str, dataset: DatasetVersion, now: datetime) -> Run:
    run = Run(id=run_id(model, dataset.blob, dataset.etag), model=model, dataset=dataset, received_at=now)
    run.move(Stage.RECEIVED, f"{dataset.blob}, {dataset.size:,} bytes", now)
    return run


class Conflict(Exception):
    """Someone else has changed the record since it was read; what they did counts."""


class Summary(msgspec.Struct, frozen=True):
    """What a listing tells of a run without reading its record.

    ``overdue`` is when its message must have been lost: some time after ``wake_at`` or, while somebody should be
    working on it, after the longest time that an invocation may take. ``unsettled``: it has ended, and has still
    something to do. ``rollback``: it is a way back to an earlier model, not of newer data.
    """

    id: str
    model: str
    stage: Stage
    uploaded_at: datetime
    overdue: datetime
    fingerprint: str
    unsettled: bool
    rollback: bool = False


class RunStore(Protocol):
    """Where run records are kept."""

    def get(self, id: str) -> tuple[Run, str] | None:
        """The record and its ETag, or None."""

    def create(self, run: Run) -> str:
        """Store a new record and return its ETag; "" when one is there already."""

    def save(self, run: Run, etag: str) -> str:
        """Replace the record that had ``etag`` and return the new ETag. Raises Conflict."""

    def summaries(self, prefix: str = "") -> Iterator[Summary]:
        """All runs whose id begins with ``prefix``."""


class BlobRunStore:
    """Run records as blobs ``<run-id>.json``; the listing's facts are the blob's metadata."""

    def __init__(self, container: "ContainerClient") -> None:
        self._container = container

    def get(self, id: str) -> tuple[Run, str] | None:
        try:
            stream = self._container.download_blob(f"{id}.json")
        except ResourceNotFoundError:
            return None
        return msgspec.json.decode(stream.readall(), type=Run), stream.properties.etag

    def create(self, run: Run) -> str:
        try:
            return self._upload(run, overwrite=False)
        except ResourceExistsError:
            return ""

    def save(self, run: Run, etag: str) -> str:
        try:
            return self._upload(run, overwrite=True, etag=etag, match_condition=MatchConditions.IfNotModified)
        except (ResourceModifiedError, ResourceNotFoundError) as error:
            raise Conflict(run.id) from error

    def summaries(self, prefix: str = "") -> Iterator[Summary]:
        from azure.storage.blob import BlobProperties

        # A walk leaves out what lies below `<run-id>/`, and a page is parsed as a whole: so memory stays flat.
        for blob in self._container.walk_blobs(prefix, include=["metadata"], results_per_page=PAGE):
            if isinstance(blob, BlobProperties) and (summary := _summary(blob)):
                yield summary

    def _upload(self, run: Run, **conditions: Any) -> str:
        metadata = {"model": run.model, "stage": str(run.stage), "uploaded_at": run.dataset.uploaded_at.isoformat()}
        if run.fingerprint:
            metadata["fingerprint"] = run.fingerprint
        if run.ended and run.unsettled:
            metadata["unsettled"] = "true"
        if run.release_of:
            metadata["rollback"] = "true"
        # Who asks something of the run sends a message at once; should that be lost, the wait's would come too late.
        if run.wake_at and not run.asked:
            metadata["wake_at"] = run.wake_at.isoformat()
        body = msgspec.json.format(msgspec.json.encode(run))
        blob = self._container.get_blob_client(f"{run.id}.json")
        etag: str = blob.upload_blob(body, metadata=metadata, **conditions)["etag"]
        return etag


def _summary(blob: "BlobProperties") -> Summary | None:
    """What a blob's metadata tells; None for one that is no record, or whose metadata somebody has changed."""
    known = blob.metadata or {}
    if not blob.name.endswith(".json") or "stage" not in known:
        return None
    try:
        return Summary(
            id=blob.name.removesuffix(".json"),
            model=known["model"],
            stage=Stage(known["stage"]),
            uploaded_at=datetime.fromisoformat(known["uploaded_at"]),
            overdue=datetime.fromisoformat(known["wake_at"]) + LATE
            if "wake_at" in known
            else blob.last_modified + LONGEST_INVOCATION,
            fingerprint=known.get("fingerprint", ""),
            # The second name is that of before releases had shares.
            unsettled="unsettled" in known or "cleanup" in known,
            rollback="rollback" in known,
        )
    except (KeyError, ValueError) as error:  # the others must be listed all the same
        log.error("summary blob=%s metadata=%s cannot be read; its next step writes it anew", blob.name, error)
        return None


def utc_now() -> datetime:
    return datetime.now(UTC)
