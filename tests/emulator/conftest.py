"""A running local Azure for the tests of a module."""

import shutil
from collections.abc import Iterator

import pytest

from tests.local_azure import LocalAzure, local_azure


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    home = tmp_path_factory.mktemp("local-azure")
    with local_azure(home) as running:
        yield running
    shutil.rmtree(home, ignore_errors=True)
