"""A local Azure of the tests' own: started in a temporary folder, on free ports, and stopped at the end."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml
from azure.core.exceptions import ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from azure.storage.blob import BlobServiceClient

from demo import watch
from tests import faults

ROOT = Path(__file__).resolve().parents[1]


class LocalAzure:
    """What a test does with a running local Azure: drop files, wait for runs, read the records."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self.environment = environment
        self.storage = BlobServiceClient(environment["Storage__blobServiceUri"], credential=DefaultAzureCredential())

    def drop(self, blob: str, content: bytes) -> str:
        """Upload into the datasets container and return the ETag without quotes."""
        client = self.storage.get_blob_client("datasets", blob)
        return str(client.upload_blob(content, overwrite=True)["etag"]).strip('"')

    def records(self, model: str) -> list[dict[str, Any]]:
        runs = self.storage.get_container_client("runs")
        names = [b.name for b in runs.list_blobs(name_starts_with=f"{model}-") if "/" not in b.name]
        return [json.loads(runs.download_blob(name).readall()) for name in names]

    def wait_for_end(self, model: str, etag: str, limit: float = 240) -> dict[str, Any]:
        """The record of the run for the file version ``etag`` once it has ended."""
        try:
            run_id = watch.find_run(self.storage, model, etag, limit)
            return watch.follow(self.storage, run_id, limit=limit)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log('functions')[-2000:]}") from error

    def report(self, run_id: str) -> str:
        """The report for people."""
        blob = self.storage.get_blob_client("reports", f"{run_id}.md")
        return str(blob.download_blob().readall().decode())

    def exists(self, container: str, blob: str) -> bool:
        try:
            self.storage.get_blob_client(container, blob).get_blob_properties()
        except ResourceNotFoundError:
            return False
        return True

    def faults(self, **wanted: Any) -> AbstractContextManager[faults.Injected]:
        """``with azure.faults(method="PUT", path="*/jobs/*", status=503, times=2): …``"""
        return faults.faults(self.environment, **wanted)

    def log(self, part: str) -> str:
        return (self.home / "logs" / f"{part}.log").read_text(encoding="utf-8", errors="replace")


def run_emulator(home: Path, *arguments: str) -> str:
    """``python -m emulator …`` with its own state folder; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "emulator", *arguments],
        cwd=ROOT,
        env={**os.environ, "EMULATOR_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def until(check: Callable[[], Any], limit: float = 60) -> Any:
    """The first true answer of ``check``, which is asked again and again for ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {limit} s"
        time.sleep(0.05)
    return found


def forget_clients() -> None:
    """Let the app in this process look at its settings and make its clients anew: for another local Azure."""
    from function_app import azure_clients
    from function_app.engines import command, machines
    from function_app.settings import settings

    for cached in (settings, *vars(azure_clients).values()):
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
    command.forget()
    machines.forget()


def exports(text: str) -> dict[str, str]:
    """The variables of ``export NAME=value`` lines."""
    words = [shlex.split(line)[1] for line in text.splitlines()]
    return dict(word.split("=", 1) for word in words)


def elsewhere(folder: Path, **changed: Any) -> Path:
    """This project's emulator.yaml, written into ``folder``; ``changed``: some of its keys."""
    raw = _absolute(yaml.safe_load((ROOT / "emulator.yaml").read_text(encoding="utf-8")))
    raw["functions_app"] = raw["fine_tuning"]["python_path"] = str(ROOT)
    raw["serverless"]["context"] = str(ROOT / raw["serverless"]["context"])
    path = folder / "emulator.yaml"
    path.write_text(yaml.safe_dump(raw | changed), encoding="utf-8")
    return path


def _absolute(value: Any) -> Any:
    """With the folders of the Python environments as they are called from everywhere."""
    if isinstance(value, dict):
        return {key: _absolute(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_absolute(each) for each in value]
    return str(ROOT / value) if isinstance(value, str) and value.startswith(".venv") else value


@contextmanager
def local_azure(home: Path, *arguments: str, project: Path = ROOT / "emulator.yaml") -> Iterator[LocalAzure]:
    """Start one, put its variables into this process's environment, and stop it at the end."""
    before = dict(os.environ)
    run_emulator(home, "--project", str(project), "up", *arguments)
    try:
        environment = exports(run_emulator(home, "--project", str(project), "env"))
        os.environ.update(environment)
        yield LocalAzure(home, environment)
    finally:
        os.environ.clear()
        os.environ.update(before)
        run_emulator(home, "--project", str(project), "down")
