"""Which URIs are this account's, and that no blob's name leads out of the folder it is fetched into."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.storage.blob.aio import BlobServiceClient

from emulator.config import ACCOUNT_KEY
from emulator.online.containers import Preparation
from emulator.storage import Location, Storage, UriError
from emulator.store import Resource
from tests.local_azure import LocalAzure

URL = "https://127.0.0.1:20000/devstoreaccount1"


@pytest.mark.parametrize("host", ["127.0.0.1:20000", "127.0.0.1:10000", "localhost:1", "localhost"])
async def test_a_url_of_the_account_is_known_under_any_port(host: str) -> None:
    assert Storage(URL).locate(f"https://{host}/devstoreaccount1/runs/a%20b/c") == Location("runs", "a b/c")


@pytest.mark.parametrize(
    "uri",
    [
        "https://devstoreaccount1.blob.core.windows.net/runs/a%20b/c?sv=1&sig=x",
        "wasbs://runs@devstoreaccount1.blob.core.windows.net/a%20b/c",
        "azureml://datastores/workspaceartifactstore/paths/a b/c",
    ],
)
async def test_the_accounts_real_name_and_its_datastores_are_known(uri: str) -> None:
    found = Storage(URL).locate(uri)
    assert found.path == "a b/c"
    assert found.container in ("runs", "azureml")
    assert Storage(URL).owns(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "wasbs://runs@other.blob.core.windows.net/a",
        "https://other.blob.core.windows.net/runs/a",
        "https://example.org:20000/devstoreaccount1/runs/a",
        "http://127.0.0.1:20000/devstoreaccount1/runs/a",
        "https://127.0.0.1:20000/devstoreaccount12/runs/a",
        "https://127.0.0.1:20000/devstoreaccount1/runs/a/%2e%2e/b",
    ],
)
async def test_other_urls_are_refused(uri: str) -> None:
    with pytest.raises(UriError, match="cannot be read here"):
        Storage(URL).locate(uri)


def storage_of(azure: LocalAzure) -> Storage:
    """As the control process has it, whose whole life has the local Azure's certificates."""
    storage = Storage(azure.environment["Storage__blobServiceUri"])
    storage._service = BlobServiceClient(
        storage.url, credential=ACCOUNT_KEY, connection_verify=azure.environment["SSL_CERT_FILE"]
    )
    return storage


async def test_a_log_that_grows_is_sent_once(azure: LocalAzure, tmp_path: Path) -> None:
    """Whoever goes on with it: the blob itself tells how much of it is there."""
    location, file = Location("runs", "grows/log.txt"), tmp_path / "log.txt"
    storage = storage_of(azure)
    file.write_bytes(b"one\n")
    stored = await storage.append(file, location)
    with file.open("ab") as grown:
        grown.write(b"two\n")
    assert stored == 4
    assert await storage.append(file, location, stored) == 8
    assert await storage.append(file, location) == 8  # another emulator, which knows nothing
    blob = azure.storage.get_blob_client("runs", "grows/log.txt")
    assert blob.download_blob().readall() == b"one\ntwo\n"
    assert blob.get_blob_properties().append_blob_committed_block_count == 2
    await storage.close()


async def test_blobs_that_cannot_be_files_are_told_of(azure: LocalAzure, tmp_path: Path) -> None:
    container = azure.storage.get_container_client("runs")
    for name in ("tree/a", "tree/a/b", "tree/c/"):
        container.upload_blob(name, b"x", overwrite=True)
    storage = storage_of(azure)
    with pytest.raises(UriError, match="another blob's name makes it a folder"):
        await storage.download(Location("runs", "tree"), tmp_path / "tree")
    assert await storage.is_blob(Location("runs", "tree/a"))
    assert not await storage.is_blob(Location("runs", "tree"))
    await storage.close()


class Container:
    """A container with one blob below the folder ``code``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_blob_client(self, name: str) -> "Container":
        return self

    async def exists(self) -> bool:
        return False

    async def list_blob_names(self, name_starts_with: str) -> AsyncIterator[str]:
        yield name_starts_with + self.name

    async def download_blob(self, name: str) -> "Container":
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"x"


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "{folder}/outside"])
async def test_a_blob_whose_name_leads_out_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    storage = Storage(URL)
    monkeypatch.setattr(storage, "container", lambda _: Container(name.format(folder=tmp_path)))
    with pytest.raises(UriError, match="leads out of its folder"):
        await storage.download(Location("c", "code"), tmp_path / "target")
    assert not (tmp_path / "outside").exists()


async def test_a_model_of_which_only_a_part_came_is_fetched_again(tmp_path: Path) -> None:
    whole = False

    async def download(location: Location, target: Path) -> int:
        target.mkdir(parents=True)
        (target / "config.json").touch()
        if not whole:
            raise UriError("the connection broke")
        (target / "weights").touch()
        return 2

    model = Resource("…/models/m/versions/1", "1", {"properties": {"modelUri": "x"}}, {}, "", "")
    deployment = Resource("d", "d", {"properties": {"model": model.id}}, {}, "", "")
    control = SimpleNamespace(
        store=SimpleNamespace(get=lambda _: model),
        locate=lambda _: Location("c", "outputs/model"),
        storage=SimpleNamespace(download=download),
    )

    async def fetch() -> Path:
        found = await Preparation(control, deployment, tmp_path / "1", tmp_path / "models", print)._model()  # type: ignore[arg-type]
        assert found
        return found

    with pytest.raises(UriError):
        await fetch()
    whole = True
    folder = await fetch()
    assert (folder / "model" / "weights").exists()
    assert folder.name == "1"
