"""Azurite as the workspace's storage account: URIs to blobs, downloads, uploads, shared access signatures."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import (
    AccountSasPermissions,
    BlobSasPermissions,
    BlobType,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)
from azure.storage.blob.aio import BlobServiceClient, ContainerClient

from .config import ACCOUNT, ACCOUNT_KEY, BLOB_HOST, HOST

# The workspace's datastores and their containers; Azure appends the workspace's GUID to the first.
DATASTORES = {"workspaceblobstore": "azureml-blobstore-local", "workspaceartifactstore": "azureml"}
MAX_PARALLEL_TRANSFERS = 8
APPEND_LIMIT = 4 * 1024 * 1024  # bytes that one append may bring
T = TypeVar("T")


class UriError(ValueError):
    """A URI that the local Azure cannot turn into blobs; the message says why."""


@dataclass(frozen=True)
class Location:
    """A blob, or all blobs below a folder, of one container."""

    container: str
    path: str

    def join(self, *names: str) -> "Location":
        return Location(self.container, "/".join([self.path.rstrip("/"), *names]).lstrip("/"))


class Storage:
    """The account behind the datastores. Uses the account key, as the service itself would."""

    def __init__(self, blob_url: str) -> None:
        self.url = blob_url
        self._service = BlobServiceClient(blob_url, credential=ACCOUNT_KEY)

    def container(self, name: str) -> ContainerClient:
        return self._service.get_container_client(name)

    async def ensure_container(self, name: str) -> None:
        try:
            await self._service.create_container(name)
        except ResourceExistsError:
            return

    def address(self, location: Location) -> str:
        return f"{self.url}/{location.container}/{location.path}".rstrip("/")

    def sas(self, container: str, days: int = 1) -> str:
        """A URL of ``container`` that lets its holder read, write and list for some days."""
        signature = generate_container_sas(
            ACCOUNT,
            container,
            account_key=ACCOUNT_KEY,
            permission=ContainerSasPermissions(read=True, write=True, list=True, create=True),
            expiry=datetime.now(UTC) + timedelta(days=days),
        )
        return f"{self.url}/{container}?{signature}"

    def account_sas(self, days: int = 1) -> str:
        """The query of a URL that lets its holder read, write and list in all containers for some days."""
        return generate_account_sas(
            ACCOUNT,
            ACCOUNT_KEY,
            ResourceTypes(container=True, object=True),
            AccountSasPermissions(read=True, create=True, update=True, write=True, delete=True, list=True),
            datetime.now(UTC) + timedelta(days=days),
        )

    def read_sas(self, location: Location, days: int = 1) -> str:
        """A URL of one blob that lets its holder read it for some days."""
        signature = generate_blob_sas(
            ACCOUNT,
            location.container,
            location.path,
            account_key=ACCOUNT_KEY,
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + timedelta(days=days),
        )
        return f"{self.address(location)}?{signature}"

    def locate(self, uri: str) -> Location:
        """The blobs behind an ``https://`` or ``wasbs://`` URL of this account or ``azureml://datastores/…/paths/…``.

        The URL's port does not matter: what was stored under another one is still here. Raises UriError.
        """
        location = self._locate(uri)
        if ".." in location.path.split("/"):
            raise UriError(f"'{uri}' cannot be read here: its path must not contain '..'.")
        return location

    def _locate(self, uri: str) -> Location:
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise UriError(f"'{uri}' is no URI: {error}.") from None
        path = unquote(parts.path)
        if parts.scheme == "https" and parts.hostname in (HOST, "localhost") and path.startswith(f"/{ACCOUNT}/"):
            container, _, path = path.removeprefix(f"/{ACCOUNT}/").lstrip("/").partition("/")
            return Location(container, path)
        if parts.scheme == "https" and parts.hostname == BLOB_HOST:
            container, _, path = path.lstrip("/").partition("/")
            return Location(container, path)
        if parts.scheme in ("wasbs", "wasb") and parts.hostname == BLOB_HOST and parts.username:
            return Location(parts.username, path.lstrip("/"))
        if parts.scheme == "azureml" and "datastores/" in uri and "/paths/" in uri:
            datastore, _, path = uri.split("datastores/", 1)[1].partition("/paths/")
            if datastore not in DATASTORES:
                raise UriError(f"Datastore '{datastore}' does not exist; there are {', '.join(DATASTORES)}.")
            return Location(DATASTORES[datastore], path)
        raise UriError(
            f"'{uri}' cannot be read here: give an https:// URL under {self.url}, wasbs://<container>@{BLOB_HOST}/<path>"
            " or azureml://datastores/<name>/paths/<path>."
        )

    def owns(self, uri: str) -> bool:
        """Whether ``uri`` leads into this account."""
        try:
            self._locate(uri)
        except UriError:
            return False
        return True

    async def is_blob(self, location: Location) -> bool:
        """Whether ``location`` is one blob; a folder of blobs, or nothing, is not."""
        if not location.path or location.path.endswith("/"):
            return False
        return await self.container(location.container).get_blob_client(location.path).exists()

    async def download(self, location: Location, target: Path) -> int:
        """Fetch a blob to the file ``target``, or a folder of blobs into the folder ``target``; return how many.

        Raises UriError when nothing is there, or when a blob's name leads out of ``target``.
        """
        container = self.container(location.container)
        try:
            if await self.is_blob(location):
                await _fetch(container, location.path, target)
                return 1
            prefix = location.path.rstrip("/") + "/" if location.path else ""
            # A name that ends in "/" stands for a folder, as some tools mark one.
            names = [
                name async for name in container.list_blob_names(name_starts_with=prefix) if not name.endswith("/")
            ]
        except ResourceNotFoundError:
            names = []
        if not names:
            raise UriError(f"Nothing is stored at {self.address(location)}.")
        for name in names:
            below = PurePosixPath(name.removeprefix(prefix))
            if below.is_absolute() or ".." in below.parts:
                raise UriError(f"The blob '{name}' cannot be stored as a file: its name leads out of its folder.")
        await _transfer(names, lambda name: _fetch(container, name, target / name.removeprefix(prefix)))
        return len(names)

    async def upload(self, source: Path, location: Location) -> int:
        """Store every file under ``source`` below ``location``, or the file ``source`` there; return how many."""
        if await asyncio.to_thread(source.is_file):
            await self._store(source, location)
            return 1
        files = await asyncio.to_thread(_files, source)
        await _transfer(files, lambda path: self._store(path, location.join(path.relative_to(source).as_posix())))
        return len(files)

    async def _store(self, path: Path, location: Location) -> None:
        with path.open("rb") as data:
            await self.container(location.container).upload_blob(location.path, data, overwrite=True)

    async def append(self, source: Path, location: Location, stored: int | None = None) -> int:
        """Bring the append blob at ``location`` up to the length of the growing file ``source``; return that length.

        ``stored`` is what the last call returned. Without it the blob tells: what an earlier emulator sent stays.
        """
        blob = self.container(location.container).get_blob_client(location.path)
        if stored is None:
            try:
                properties = await blob.get_blob_properties()
                stored = properties.size if properties.blob_type == BlobType.APPENDBLOB else None
            except ResourceNotFoundError:
                pass
        if stored is None:
            await blob.create_append_blob()
            stored = 0
        while data := await asyncio.to_thread(_read, source, stored, APPEND_LIMIT):
            await blob.append_block(data, appendpos_condition=stored)
            stored += len(data)
        return stored

    async def close(self) -> None:
        await self._service.close()


async def _transfer(items: Sequence[T], one: Callable[[T], Awaitable[None]]) -> None:
    """Do ``one`` with all items, some at a time. An error, or who breaks it off, leaves none of them running."""
    gate = asyncio.Semaphore(MAX_PARALLEL_TRANSFERS)

    async def gated(item: T) -> None:
        async with gate:
            await one(item)

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(gated(item))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _fetch(container: ContainerClient, name: str, target: Path) -> None:
    stream = await container.download_blob(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise UriError(
            f"The blob '{name}' cannot be stored as a file: another blob's name makes it a folder."
        ) from None
    with file:
        async for chunk in stream.chunks():
            file.write(chunk)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)
