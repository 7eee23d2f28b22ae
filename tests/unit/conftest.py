"""Fixtures of the chat and flow tests: a TLS certificate, and the functions with everything around them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chat_support import World, chat_world, make_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def world(certificate: tuple[Path, Path]) -> AsyncIterator[World]:
    async with chat_world(certificate) as made:
        yield made
