"""What two modules share: a local Azure with its Functions host, whose trainings and models take milliseconds."""

import shutil
from collections.abc import Iterator

import pytest

from tests import instant
from tests.local_azure import LocalAzure, local_azure


@pytest.fixture(scope="package")
def instant_azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    """Each of its modules has models of names of its own."""
    home = tmp_path_factory.mktemp("local-azure")
    # The folder's name has a space, as a checkout's may.
    project = instant.project(tmp_path_factory.mktemp("a project"), functions=True)
    with local_azure(home, project=project) as running:
        yield running
    shutil.rmtree(home, ignore_errors=True)
