"""Which models are live: the records ``runs/live/<model>.json``, read through a short cache."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from azure.storage.blob.aio import ContainerClient

PREFIX = "live/"
FRESH_SECONDS = 5.0
STALE_SECONDS = 60.0  # how long an old list is answered at once while a new one is fetched
LOOK_AGAIN_SECONDS = 1.0  # for a model that is not in the list
WAIT_SECONDS = 2.0  # for storage, when there is an older list to fall back on
FIRST_WAIT_SECONDS = 20.0  # and when there is none

log = logging.getLogger(__name__)


class LiveModelsUnavailable(Exception):
    """The records cannot be read, and there is no earlier list to go by."""

    status = 503


class ChatRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the recipe's section ``chat`` says; recipe/fields.py gives the meaning."""

    system_prompt: str = ""
    trim_history: bool = True
    max_severity: int | None = None


class Kept(msgspec.Struct, frozen=True):
    """The deployment that the live one has replaced. It can be asked by name ``until`` its bake time is over."""

    deployment: str
    model_version: str = ""
    wire: Literal["", "mlflow"] = ""
    scoring_uri: str = ""
    until: datetime | None = None


class LiveModel(msgspec.Struct, frozen=True):
    """A live record; docs/interfaces.md gives the fields."""

    model: str
    scoring_uri: str
    run_id: str = ""
    endpoint: str = ""
    deployment: str = ""
    auth: Literal["", "key"] = ""  # how the endpoint is opened: with an Entra token, or with its key
    wire: Literal["", "mlflow"] = ""  # what it takes: OpenAI's requests, or the scoring payload
    model_version: str = ""
    base_model: str = ""
    context_length: int | None = None
    since: str = ""
    chat: ChatRules = ChatRules()
    replaced: Kept | None = None


class LiveModels:
    """The live models as one event loop sees them; at most one reading of the container is under way."""

    def __init__(self, container: "ContainerClient") -> None:
        self._container = container
        self._models: dict[str, LiveModel] = {}
        self._records: dict[str, tuple[str, LiveModel | None]] = {}  # by blob name, with its ETag
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._closer: AsyncGenerator[None, None] | None = None

    async def all(self) -> Mapping[str, LiveModel]:
        """Return the live models by name, at most a few seconds old while the app is in use.

        When storage does not answer, the last list that it gave serves on; without one, LiveModelsUnavailable.
        """
        age = time.monotonic() - self._read_at
        if age > FRESH_SECONDS:
            reading = self._read_once()
            if age > STALE_SECONDS:
                await asyncio.wait([reading], timeout=WAIT_SECONDS if self._has_read else FIRST_WAIT_SECONDS)
        if not self._has_read:
            raise LiveModelsUnavailable("The list of live models cannot be read from storage right now; try again.")
        return self._models

    async def find(self, name: str) -> LiveModel | None:
        """Return the live model of that name, even one that went live a moment ago. Raises as ``all`` does."""
        found = (await self.all()).get(name)
        return found or await self.find_newer(name)

    async def find_newer(self, name: str) -> LiveModel | None:
        """Return the live model of that name from a list that is a moment old at most, if storage answers."""
        if time.monotonic() - self._read_at > LOOK_AGAIN_SECONDS:
            await asyncio.wait([self._read_once()], timeout=WAIT_SECONDS)
        return self._models.get(name)

    async def find_again(self, name: str) -> LiveModel | None:
        """Return the live model of that name as storage has it now; a moment ago it may have been elsewhere."""
        await asyncio.wait([self._read_once()], timeout=WAIT_SECONDS)
        return self._models.get(name)

    @property
    def _has_read(self) -> bool:
        return self._read_at != float("-inf")

    def _read_once(self) -> "asyncio.Task[None]":
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _read(self) -> None:
        from azure.core.exceptions import AzureError, ResourceNotFoundError

        if self._closer is None:
            # asyncio.run closes the async generators that were started on its loop: the one hook that a loop offers.
            self._closer = _close_with_loop(self._container)
            await anext(self._closer)
        records: dict[str, tuple[str, LiveModel | None]] = {}
        try:
            async for blob in self._container.list_blobs(name_starts_with=PREFIX):
                known = self._records.get(blob.name)
                if known is None or known[0] != blob.etag:
                    known = (blob.etag, await self._read_record(blob.name))
                records[blob.name] = known
        except ResourceNotFoundError:
            records = {}  # nothing has created the container yet
        except AzureError as error:
            log.warning("live_models error=%s serving=%d", type(error).__name__, len(self._models))
            return
        self._records = records
        self._models = {record.model: record for _, record in records.values() if record}
        self._read_at = time.monotonic()

    async def _read_record(self, name: str) -> LiveModel | None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            blob = await self._container.download_blob(name)
            return msgspec.json.decode(await blob.readall(), type=LiveModel)
        except ResourceNotFoundError:
            return None  # deleted since it was listed
        except msgspec.MsgspecError as error:
            log.error("live_models blob=%s error=%r", name, str(error))
            return None


async def _close_with_loop(container: "ContainerClient") -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await container.close()
        await container.credential.close()


_by_loop: dict[asyncio.AbstractEventLoop, LiveModels] = {}


def live_models() -> LiveModels:
    """The live models of the running event loop; a client is bound to the loop that it first ran on."""
    loop = asyncio.get_running_loop()
    if loop not in _by_loop:
        from .azure_clients import live_container

        for closed in [other for other in _by_loop if other.is_closed()]:
            del _by_loop[closed]
        _by_loop[loop] = LiveModels(live_container())
    return _by_loop[loop]
