"""A pytest plugin: one Azurite for all tests that ask for it."""

from collections.abc import Iterator

import pytest
from host_processes import Azurite, running_azurite


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running
