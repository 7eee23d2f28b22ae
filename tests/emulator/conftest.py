"""A running local Azure for the tests of a module, each of whose answers is held against the SDK's own models."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.ai.ml import MLClient
from hypothesis import HealthCheck, settings
from job_helpers import client

from tests import instant
from tests.emulator.conformance import Oracle, watch
from tests.local_azure import ROOT, LocalAzure, elsewhere, local_azure

# Hypothesis fails what takes it more than 0.2 s, which on a busy machine anything may.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# Modules that neither run a job nor look at one: MLflow's server, a third of what a start costs, is played.
WITHOUT_MLFLOW = {
    "test_assets", "test_bad_requests", "test_blob_io", "test_computes", "test_faults", "test_intake",
    "test_online_deployments", "test_online_endpoints", "test_online_inference", "test_releases", "test_sdk",
    "test_storage", "test_workspace",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that look back on all others at the end."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture(scope="module")
def azure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    home, project = tmp_path_factory.mktemp("local-azure"), ROOT / "emulator.yaml"
    if request.module.__name__.rpartition(".")[2] in WITHOUT_MLFLOW:
        folder = tmp_path_factory.mktemp("project")
        project = elsewhere(folder, mlflow_python=str(instant.environment(folder)))
    with local_azure(home, project=project) as running:
        yield running
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def ml(azure: LocalAzure) -> MLClient:
    """The unmodified client of the module's local Azure."""
    return client(azure)


@pytest.fixture(scope="session")
def judged(request: pytest.FixtureRequest) -> Iterator[set[tuple[str, str, int]]]:
    """Method, path and status of every answer that an oracle has seen so far.

    When the tests are shared out among several sessions (tests/__main__.py), each leaves in the folder JUDGED what it
    has seen and which files it ran.
    """
    seen: set[tuple[str, str, int]] = set()
    yield seen
    if folder := os.environ.get("JUDGED"):
        files = sorted({item.path.name for item in request.session.items})
        Path(folder, f"{os.getpid()}.json").write_text(json.dumps({"files": files, "seen": sorted(seen)}))


@pytest.fixture(autouse=True)
def oracle(judged: set[tuple[str, str, int]]) -> Iterator[Oracle]:
    """Fails a test in which the SDK was told anything that the real service could not have said."""
    with watch(Oracle()) as watching:
        yield watching
    judged |= watching.calls
    assert not watching.violations, "\n".join(dict.fromkeys(watching.violations))
