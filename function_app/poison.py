"""Messages that the app could not work on: kept as blobs, for people to look at and to send again."""

import base64
import logging
import re
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec
from azure.core.exceptions import ResourceNotFoundError

from . import azure_clients
from .runs import Ask, BlobRunStore, Stage, utc_now
from .settings import settings

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

log = logging.getLogger("function_app.poison")

PREFIX = "poison/"
RUN_ID = re.compile(r"[a-z0-9-]{1,100}")  # what may become part of a blob's name
NAME = re.compile(r"\d{8}T\d{6}Z-[a-z0-9-]{1,120}")
MOST = 200  # are listed, the newest; there is one for each run
GAVE_UP = "an unexpected error, again and again; the function app's log has the traceback"


class Kept(msgspec.Struct, frozen=True):
    """A blob ``poison/<time>-<run id>.json``; ``body`` is the message in base64, ``message`` the same to read."""

    at: datetime
    run_id: str
    message: str
    body: str


def keep(body: bytes, run_id: str = "") -> str:
    """Keep a message; return its name. A run's later message takes the place of its earlier one: they say the same.

    ``run_id`` is empty for a message that names no run.
    """
    who = run_id if RUN_ID.fullmatch(run_id) else f"unreadable-{sha256(body).hexdigest()[:12]}"
    now = utc_now()
    earlier = next((name for name in _names() if name.partition("-")[2] == who), "")
    name = earlier or f"{now:%Y%m%dT%H%M%SZ}-{who}"
    kept = Kept(now, run_id, body.decode("utf-8", "replace"), base64.b64encode(body).decode())
    _runs().upload_blob(_blob(name), msgspec.json.encode(kept), overwrite=True)
    return name


def kept() -> list[dict[str, Any]]:
    """The newest messages that are kept, the latest first, each with ``name``, ``at``, ``run_id`` and ``message``."""
    found: list[dict[str, Any]] = []
    for name in sorted(_names(), reverse=True)[:MOST]:
        if message := _read(name):
            told = {"at": message.at.isoformat(), "run_id": message.run_id, "message": message.message}
            found.append({"name": name, **told})
    return found


def replay(name: str, by: str = "an operator") -> bool:
    """Send a kept message again and forget it; False when there is none of that name (any more).

    A run that the app has given up because of such messages is asked to be taken up again, in the name of ``by``. May
    be repeated. Raises Conflict when the run is moved at this moment.
    """
    message = _read(name)
    if message is None:
        return False
    _encourage(message.run_id, by)
    # The queue's own wire form: the client's policy encodes the text again.
    azure_clients.runs_queue().send_message(base64.b64decode(message.body).decode("utf-8", "replace"), time_to_live=-1)
    with suppress(ResourceNotFoundError):
        _runs().delete_blob(_blob(name))
    return True


def _encourage(run_id: str, by: str) -> None:
    """Give the run its chances back."""
    runs = BlobRunStore(_runs())
    found = runs.get(run_id) if RUN_ID.fullmatch(run_id) else None
    if found is None:
        return
    run, etag = found
    run.revivals = 0
    run.links.pop("poison", None)
    if run.stage == Stage.FAILED and run.history[-1].reason == GAVE_UP:
        run.asked = Ask("retry", by, utc_now(), "its message was sent again")
    runs.save(run, etag)


def _names() -> list[str]:
    blobs = _runs().list_blobs(name_starts_with=PREFIX)
    names = [blob.name.removeprefix(PREFIX).removesuffix(".json") for blob in blobs]
    return [name for name in names if NAME.fullmatch(name)]


def _read(name: str) -> Kept | None:
    if not NAME.fullmatch(name):
        return None
    try:
        return msgspec.json.decode(_runs().download_blob(_blob(name)).readall(), type=Kept)
    except ResourceNotFoundError:
        return None
    except msgspec.MsgspecError as error:  # somebody has changed it; the others can be read
        log.error("poison name=%s error=%r", name, str(error))
        return None


def _blob(name: str) -> str:
    return f"{PREFIX}{name}.json"


def _runs() -> "ContainerClient":
    return azure_clients.container(settings().runs_container)
