"""The records of a Hugging Face data set: from the hub, from the local cache, or from a folder laid out like one."""

import os
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import FineTuneError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

_PROBE_SECONDS = 5.0
_ID = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")


class _NotThere(Exception):
    """This name is no data set; the message is the sentence to show if no other name is one either."""


def read_hub(name: str, config: str | None, split: str | None, *, offline: bool) -> Iterator[dict[str, Any]]:
    """Return the records of the data set ``name`` on the hub; with ``offline``, or when it is not there, of the cache.

    ``owner/name``, ``name``, or, with the configuration behind it, ``wikitext/wikitext-2-v1``. It sets the Hugging Face
    libraries' environment variables, so none of them may have been imported. Raises FineTuneError.
    """
    if not _ID.fullmatch(name):
        raise FineTuneError(f"{name!r} is neither a file or folder that exists nor the id of a data set (owner/name)")
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    reason = "offline" if offline else _unreachable(endpoint)
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the library's own retries would take half a minute
    errors = []
    for candidate, its_config in _candidates(name, config):
        try:
            builder = _cached(candidate, its_config) if reason else _online(candidate, its_config)
            if reason and not offline:
                print(f"note: {endpoint} does not answer ({reason}); taking {name!r} from the cache", file=sys.stderr)
            return _records(builder, split, name)
        except _NotThere as error:
            errors.append(error)
    if not reason:
        raise FineTuneError(str(errors[0])) from errors[0]
    where = f"cannot reach the Hugging Face Hub at {endpoint} ({reason})"
    if offline:
        where = "the Hugging Face Hub is not asked (--offline or HF_HUB_OFFLINE)"
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    raise FineTuneError(
        f"{where}, and {name!r} is not in the cache {home}; give a local file or folder instead, "
        "or set HF_HOME to a cache that was filled where the hub can be reached"
    )


def read_folder(folder: Path, config: str | None, split: str | None) -> Iterator[dict[str, Any]]:
    """Return the records of a folder: a data set's repository, loose files of one format, or of ``save_to_disk``."""
    from datasets import load_from_disk
    from datasets.exceptions import DatasetsError

    try:
        if (folder / "dataset_dict.json").exists():
            return _slices(dict(load_from_disk(str(folder))), split, str(folder))
        if (folder / "state.json").exists():
            return _slices({"train": load_from_disk(str(folder))}, split, str(folder))
        return _records(_built(str(folder), config, str(folder.absolute())), split, str(folder))
    except (DatasetsError, OSError, ValueError) as error:
        raise FineTuneError(f"cannot read the folder {folder}: {_first_line(error)}; name one file in it") from error


def _candidates(name: str, config: str | None) -> list[tuple[str, str | None]]:
    """Return the data sets that ``name`` may mean, each with its configuration."""
    head, _, last = name.rpartition("/")
    if config or not head:
        return [(name, config)]
    return [(head, last)] if "/" in head else [(name, None), (head, last)]


def _unreachable(endpoint: str) -> str | None:
    """Return why the hub does not answer, within seconds, or None when it does."""
    reasons = ["no answer within seconds"]

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 https, or what HF_ENDPOINT says
        try:
            urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()  # noqa: S310
            reasons.clear()
        except urllib.error.HTTPError as error:
            # 4xx comes from the hub itself; 5xx may be a proxy's, and the libraries would go on asking.
            reasons[:] = [f"HTTP {error.code}"] if error.code >= 500 else []
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            reasons[:] = [str(getattr(reason, "strerror", None) or reason)]

    # A thread, since looking a name up has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * _PROBE_SECONDS)
    return reasons[0] if reasons else None


def _online(name: str, config: str | None) -> "DatasetBuilder":
    from datasets.exceptions import DatasetNotFoundError
    from httpx2 import HTTPError

    try:
        return _built(name, config)
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise FineTuneError(
                f"{name!r} is gated: ask for access at https://huggingface.co/datasets/{name}, then set HF_TOKEN to a "
                "token of yours"
            ) from error
        raise _NotThere(
            f"the hub has no data set {name!r}, or it is private; check the name at https://huggingface.co/datasets, "
            "or set HF_TOKEN to a token that may read it"
        ) from error
    except (HTTPError, OSError) as error:
        raise FineTuneError(
            f"the hub answers, but does not give {name!r} ({type(error).__name__}: {_first_line(error)[:120]}); try "
            "again later, check HF_ENDPOINT and the proxy, or take it from the cache with --offline"
        ) from error


def _cached(name: str, config: str | None) -> "DatasetBuilder":
    """Return what was prepared from the data set on this machine or, else, what was downloaded of it."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub import snapshot_download

    try:
        return _built(name, config)
    except (OSError, DatasetsError):
        pass
    try:
        folder = snapshot_download(name, repo_type="dataset", local_files_only=True)
        return _built(name, config, folder)
    except (OSError, DatasetsError) as error:
        raise _NotThere(f"{name!r} is not in the cache") from error


def _built(name: str, config: str | None, path: str | None = None) -> "DatasetBuilder":
    """Return the builder; what it says about an unknown or missing configuration becomes a sentence."""
    from datasets import load_dataset_builder

    try:
        return load_dataset_builder(path or name, config)
    except ValueError as error:
        known = re.search(
            r"(?i:available)[^\[]*\[([^\]]*)\]|multiple .*? configurations in the cache: (.*)", str(error)
        )
        if not known:
            raise FineTuneError(f"{name!r} cannot be loaded: {_first_line(error)}") from error
        wrong = f"has no configuration {config!r}" if config else "has several configurations"
        names = (known[1] or known[2]).replace("'", "")
        raise FineTuneError(f"{name!r} {wrong}; name one with --config: {names}") from error


def _records(builder: "DatasetBuilder", split: str | None, name: str) -> Iterator[dict[str, Any]]:
    """Return the records of the split, downloaded and memory-mapped."""
    from datasets.exceptions import DatasetsError
    from httpx2 import HTTPError

    known = list(builder.info.splits or getattr(builder.config, "data_files", None) or {})
    if known:
        _check_split(split, known, name)  # before the download
    try:
        builder.download_and_prepare()
        datasets = {str(key): value for key, value in builder.as_dataset().items()}
    except (DatasetsError, HTTPError, OSError) as error:
        cause = _first_line(error.__cause__ or error)
        raise FineTuneError(f"the data of {name!r} cannot be loaded: {cause}") from error
    return _slices(datasets, split, name)


def _slices(datasets: dict[str, "Dataset"], split: str | None, name: str) -> Iterator[dict[str, Any]]:
    from datasets import ReadInstruction

    spec = _check_split(split, list(datasets), name)
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute({key: len(value) for key, value in datasets.items()})
    except (ValueError, AssertionError) as error:
        raise FineTuneError(
            f"the split {spec!r} cannot be taken of {name!r}: {_first_line(error)}; it looks like 'train[:1%]' or "
            f"'train[:100]', and the splits are {', '.join(datasets)}"
        ) from error
    return (row for part in parts for row in datasets[part.splitname].select(range(part.from_, part.to)))


def _check_split(split: str | None, known: list[str], name: str) -> str:
    """Return the split to read: the one asked for, else ``train``, else the only one there is."""
    if not split or split.startswith("["):
        if "train" not in known and len(known) > 1:
            raise FineTuneError(f"{name!r} has several splits; name one with --split: {', '.join(known)}")
        return ("train" if "train" in known else known[0]) + (split or "")
    for part in split.split("+"):
        if part.split("[")[0].strip() not in [*known, "all"]:
            raise FineTuneError(f"{name!r} has no split {part.split('[')[0].strip()!r}; it has {', '.join(known)}")
    return split


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
