"""Fixtures of the chat and flow tests: a TLS certificate, the functions with everything around them, an issuer."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chat_support import World, chat_world, make_certificate
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from entra_support import StubEntra


# Hypothesis fails what takes it more than 0.2 s, which on a busy machine anything may.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def world(certificate: tuple[Path, Path]) -> AsyncIterator[World]:
    async with chat_world(certificate) as made:
        yield made


@pytest.fixture
async def entra(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator["StubEntra"]:
    from entra_support import serve_entra  # here, since it makes keys, which takes a moment

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with serve_entra(*certificate) as stub:
        yield stub
