"""Fixtures of the chat and flow tests: a TLS certificate, the functions with everything around them, an issuer."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from chat_support import Allow, Configure, World, chat_world, make_certificate

from function_app.api_keys import new_key
from function_app.settings import settings

if TYPE_CHECKING:
    from entra_support import StubEntra


# Hypothesis fails what takes it more than 0.2 s, which on a busy machine anything may.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def world(certificate: tuple[Path, Path]) -> AsyncIterator[World]:
    async with chat_world(certificate) as made:
        yield made


@pytest.fixture
def configure(world: World) -> Iterator[Configure]:
    """Changes app settings, until the world ends."""
    with pytest.MonkeyPatch.context() as environment:

        def change(**values: str) -> None:
            for name, value in values.items():
                environment.setenv(name, value)
            settings.cache_clear()

        yield change


@pytest.fixture
def allow(world: World, configure: Configure) -> Allow:
    """Gives the world's client a key with limits; the key that it had still opens."""

    def limited(models: str | None = None, concurrency: int | None = None) -> None:
        world.key, entry = new_key("limited", models, concurrency)
        configure(CHAT_API_KEYS=f"{settings().chat_api_keys},{entry}")

    return limited


@pytest.fixture
async def entra(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator["StubEntra"]:
    from entra_support import serve_entra  # here, since it makes keys, which takes a moment

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with serve_entra(*certificate) as stub:
        yield stub
