"""The live record of one model, for those who move runs; live.py reads all of them for the chat."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from azure.core import MatchConditions
from azure.core.exceptions import ResourceNotFoundError

from . import azure_clients
from .errors import StepError
from .live import PREFIX, ChatRules, Kept
from .recipe import stored_recipe
from .recipe.fields import Release
from .runs import PAGE
from .settings import settings

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

log = logging.getLogger("function_app.live_record")

IDLE_HOURS = Release().idle_hours


class Serving(msgspec.Struct, frozen=True):
    """What the watch over idle models needs of a live record; the blob's metadata has it too, for listings."""

    model: str
    run_id: str
    since: datetime
    idle_hours: float = IDLE_HOURS


def blob(model: str) -> "BlobClient":
    """Where the record of the model is (docs/interfaces.md)."""
    return azure_clients.container(settings().runs_container).get_blob_client(f"{PREFIX}{model}.json")


def read(model: str) -> dict[str, Any] | None:
    """The record; None when nothing serves under the model's name. Raises StepError when it cannot be read."""
    try:
        return msgspec.json.decode(blob(model).download_blob().readall(), type=dict[str, Any])
    except ResourceNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise StepError(f"the record {PREFIX}{model}.json in the runs container cannot be read: {error}") from None


def listing() -> Iterator[Serving]:
    """All models that serve, by one listing. Of a record without its metadata (somebody has edited it) the content is
    read, and one that makes no sense is left out.
    """
    container = azure_clients.container(settings().runs_container)
    for found in container.list_blobs(PREFIX, include=["metadata"], results_per_page=PAGE):
        model = found.name.removeprefix(PREFIX).removesuffix(".json")
        known = {"model": model, **(found.metadata or {})}
        try:
            if "run_id" not in known:
                known |= read(model) or {}
            yield msgspec.convert(known, Serving, strict=False)
        except (msgspec.ValidationError, StepError) as error:
            log.error("live_record blob=%s error=%r", found.name, str(error))


def idle_hours(recipe: dict[str, Any]) -> float:
    """The recipe's release.idle_hours; 0: never idle."""
    return stored_recipe(recipe).release.idle_hours


def chat_rules(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe's section chat, as far as it is not the default."""
    rules: dict[str, Any] = msgspec.to_builtins(ChatRules(**msgspec.structs.asdict(stored_recipe(recipe).chat)))
    return rules


def with_replaced(record: dict[str, Any], before: dict[str, Any], until: datetime) -> dict[str, Any]:
    """``record`` with the deployment of the record ``before``, which stays on the same endpoint ``until`` then."""
    if record["endpoint"] != before.get("endpoint") or not record["deployment"]:
        return record
    if record["deployment"] == before.get("deployment"):  # the same release, written again
        return {**record, "replaced": before["replaced"]} if before.get("replaced") else record
    kept = {name: before[name] for name in Kept.__struct_fields__ if before.get(name)}
    return {**record, "replaced": {**kept, "until": until}} if "deployment" in kept else record


def etag(model: str) -> str:
    """The record's ETag; "" when there is no record."""
    try:
        return str(blob(model).get_blob_properties().etag)
    except ResourceNotFoundError:
        return ""


def write(record: dict[str, Any], etag: str) -> None:
    """Store the record of ``record["model"]`` in place of the one that had ``etag`` ("": of none).

    Raises what Azure raises for one that has changed since.
    """
    content = msgspec.json.encode(record)
    serving = msgspec.to_builtins(msgspec.json.decode(content, type=Serving))
    metadata = {name: str(value) for name, value in serving.items() if name != "model"}
    conditions: dict[str, Any] = {"etag": etag, "match_condition": MatchConditions.IfNotModified} if etag else {}
    blob(record["model"]).upload_blob(content, metadata=metadata, overwrite=bool(etag), **conditions)


def delete(model: str, etag: str) -> None:
    """Nothing serves under the model's name any more. Raises what Azure raises for a record that has changed since."""
    with suppress(ResourceNotFoundError):
        blob(model).delete_blob(etag=etag, match_condition=MatchConditions.IfNotModified)
