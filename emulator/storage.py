"""Azurite as the workspace's storage account: URIs to blobs, downloads, uploads, shared access signatures."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import (
    AccountSasPermissions,
    BlobSasPermissions,
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
        """The blobs behind an ``https://`` URL of this account or an ``azureml://datastores/…/paths/…`` URI.

        The URL's port does not matter: what was stored under another one is still here. Raises UriError.
        """
        location = self._locate(uri)
        if ".." in location.path.split("/"):
            raise UriError(f"'{uri}' cannot be read here: its path must not contain '..'.")
        return location

    def _locate(self, uri: str) -> Location:
        parts = urlsplit(uri)
        ours = f"/{ACCOUNT}/"
        if parts.scheme == "https" and parts.hostname in (HOST, "localhost") and parts.path.startswith(ours):
            container, _, path = unquote(parts.path.removeprefix(ours)).lstrip("/").partition("/")
            return Location(container, path)
        if parts.scheme == "https" and parts.hostname == BLOB_HOST:
            container, _, path = unquote(parts.path).lstrip("/").partition("/")
            return Location(container, path)
        if parts.scheme == "azureml" and "datastores/" in uri and "/paths/" in uri:
            datastore, _, path = uri.split("datastores/", 1)[1].partition("/paths/")
            if datastore not in DATASTORES:
                raise UriError(f"Datastore '{datastore}' does not exist; there are {', '.join(DATASTORES)}.")
            return Location(DATASTORES[datastore], path)
        raise UriError(
            f"'{uri}' cannot be read here: give an https:// URL under {self.url} or azureml://datastores/<name>/paths/<path>."
        )

    async def download(self, location: Location, target: Path) -> int:
        """Fetch a blob to the file ``target``, or a folder of blobs into the folder ``target``; return how many.

        Raises UriError when nothing is there, or when a blob's name leads out of ``target``.
        """
        container = self.container(location.container)
        try:
            single = container.get_blob_client(location.path)
            if location.path and not location.path.endswith("/") and await single.exists():
                await _fetch(container, location.path, target)
                return 1
            prefix = location.path.rstrip("/") + "/" if location.path else ""
            names = [name async for name in container.list_blob_names(name_starts_with=prefix)]
        except ResourceNotFoundError:
            names = []
        if not names:
            raise UriError(f"Nothing is stored at {self.address(location)}.")
        for name in names:
            below = PurePosixPath(name.removeprefix(prefix))
            if below.is_absolute() or ".." in below.parts:
                raise UriError(f"The blob '{name}' cannot be stored as a file: its name leads out of its folder.")
        gate = asyncio.Semaphore(MAX_PARALLEL_TRANSFERS)

        async def one(name: str) -> None:
            async with gate:
                await _fetch(container, name, target / name.removeprefix(prefix))

        await asyncio.gather(*(one(name) for name in names))
        return len(names)

    async def upload(self, source: Path, location: Location) -> int:
        """Store every file under ``source`` below ``location``; return how many."""
        files = [path for path in sorted(source.rglob("*")) if path.is_file()]
        container = self.container(location.container)
        gate = asyncio.Semaphore(MAX_PARALLEL_TRANSFERS)

        async def one(path: Path) -> None:
            async with gate:
                with path.open("rb") as data:
                    await container.upload_blob(
                        location.join(path.relative_to(source).as_posix()).path, data, overwrite=True
                    )

        await asyncio.gather(*(one(path) for path in files))
        return len(files)

    async def close(self) -> None:
        await self._service.close()


async def _fetch(container: ContainerClient, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    stream = await container.download_blob(name)
    with target.open("wb") as file:
        async for chunk in stream.chunks():
            file.write(chunk)
