"""A job's inputs come to this machine: blobs and web files as local paths, literals as their text."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import aiohttp

from ..storage import Location, UriError
from ..store import Json, Resource
from .status import JobError

if TYPE_CHECKING:
    from ..control import Control

FETCH_LIMIT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)  # seconds
CHUNK = 1024 * 1024  # bytes


async def fetch_inputs(control: "Control", job: Resource, folder: Path) -> dict[str, str]:
    """What stands for each input of ``job`` in its command: a literal's text, a URI (mode Direct), or a path.

    Every mode that mounts is modelled as Download: what is there when the job starts lies in a folder of its own, and
    writing into it changes nothing in storage. An input without a value is left out. Raises JobError.
    """
    values: dict[str, str] = {}
    for name, given in (job.properties.get("inputs") or {}).items():
        if given["jobInputType"] == "literal":
            if given.get("value") is not None:
                values[name] = str(given["value"])
        elif given.get("mode") == "Direct":
            values[name] = str(given["uri"])
        else:
            try:
                values[name] = str(await _fetch(control, given, folder / name))
            except UriError as error:
                raise JobError(f"The input '{name}' cannot be read: {error}") from None
    return values


async def _fetch(control: "Control", given: Json, folder: Path) -> Path:
    """The local path of one input that is no literal. Raises UriError."""
    kind, uri = given["jobInputType"], given["uri"]
    resolved = control.references.resolve(uri, kind)
    if urlsplit(resolved).scheme in ("http", "https") and not control.storage.owns(resolved):
        return await _fetch_from_web(resolved, kind, folder)
    location = control.storage.locate(resolved)
    location = Location(location.container, location.path.rstrip("/"))
    single = await control.storage.is_blob(location)
    if kind == "uri_file" and not single:
        raise UriError(f"it is a uri_file, but there is no file at {uri}; for a folder, give the type uri_folder.")
    if kind in ("uri_folder", "mltable") and single:
        raise UriError(f"it is a {kind}, but {uri} is a file; for one file, give the type uri_file.")
    target = folder / Path(location.path).name if single else folder
    await control.storage.download(location, target)
    if kind == "mltable" and not (target / "MLTable").exists():
        raise UriError(f"it is an mltable, but the folder {uri} has no file MLTable.")
    return target


async def _fetch_from_web(url: str, kind: str, folder: Path) -> Path:
    """A public file of the web, really fetched. Raises UriError."""
    if kind in ("uri_folder", "mltable"):
        raise UriError(f"it is a {kind}, but over {urlsplit(url).scheme}:// single files alone can be fetched.")
    name = Path(unquote(urlsplit(url).path)).name
    if name in ("", ".."):
        raise UriError(f"{url} names no file.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # trust_env: the proxy of the shell that started the local Azure.
        async with (
            aiohttp.ClientSession(timeout=FETCH_LIMIT, trust_env=True) as session,
            session.get(url) as response,
        ):
            if response.status != 200:
                raise UriError(f"{urlsplit(url).hostname} answered {response.status} to {url.partition('?')[0]}.")
            with (folder / name).open("wb") as file:
                async for chunk in response.content.iter_chunked(CHUNK):
                    file.write(chunk)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise UriError(
            f"{urlsplit(url).hostname} cannot be reached from this machine ({type(error).__name__}); put the file into"
            " a datastore instead."
        ) from None
    return folder / name
