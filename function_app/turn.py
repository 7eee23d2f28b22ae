"""The turn to release a model: one run at a time changes the endpoint. A blob names the run that has it.

Nobody gives a turn back: it is free as soon as its run has ended and has nothing left on the endpoint.
"""

from typing import TYPE_CHECKING

import msgspec
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

from . import azure_clients
from .runs import Run, RunStore, Stage
from .settings import settings

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

PREFIX = "turns/"
BEFORE = frozenset({Stage.RECEIVED, Stage.VALIDATED, Stage.TRAINING, Stage.TRAINED, Stage.APPROVED})


class Turn(msgspec.Struct, frozen=True):
    """The content of ``turns/<model>.json``."""

    run_id: str = ""


def holder(runs: RunStore, run: Run) -> str:
    """The id of another run that has the turn of ``run``'s model; "" when it can be taken."""
    return _other(runs, run, _read(run.model)[0])


def take(runs: RunStore, run: Run) -> bool:
    """Claim the turn; False when another run has it, or has claimed it in this moment. May be repeated.

    The blob is written even when it names the run already: another that found the run ended, before it was taken up
    again, may be about to write, and then only one of the two succeeds.
    """
    turn, etag = _read(run.model)
    if _other(runs, run, turn):
        return False
    content = msgspec.json.encode(Turn(run.id))
    try:
        if etag:
            _blob(run.model).upload_blob(
                content, overwrite=True, etag=etag, match_condition=MatchConditions.IfNotModified
            )
        else:
            _blob(run.model).upload_blob(content, overwrite=False)
    except (ResourceExistsError, ResourceModifiedError):
        return False
    return True


def _other(runs: RunStore, run: Run, turn: Turn) -> str:
    if turn.run_id in ("", run.id):
        return ""
    found = runs.get(turn.run_id)
    if found is None:
        return ""
    other = found[0]
    done = other.ended and other.cleanup in ("", "job", "replaced")
    # One that was taken up again from a stage before its release will ask for its turn anew.
    return "" if done or other.stage in BEFORE else other.id


def _read(model: str) -> tuple[Turn, str]:
    """The turn and the blob's ETag; no ETag when there is no blob."""
    try:
        stream = _blob(model).download_blob()
        return msgspec.json.decode(stream.readall(), type=Turn), str(stream.properties.etag)
    except ResourceNotFoundError:
        return Turn(), ""


def _blob(model: str) -> "BlobClient":
    return azure_clients.container(settings().runs_container).get_blob_client(f"{PREFIX}{model}.json")
