"""The list of live models is fresh enough, cheap, and survives a storage that does not answer."""

import asyncio
import json
import logging

import pytest
from azure.core.exceptions import ResourceNotFoundError, ServiceRequestError
from chat_support import StubContainer

from function_app import live
from function_app.live import LiveModels, LiveModelsUnavailable

URI = "https://localhost:1/v1/chat/completions"


@pytest.fixture
def container() -> StubContainer:
    stub = StubContainer()
    stub.put_live("support", URI)
    return stub


@pytest.fixture
def models(container: StubContainer) -> LiveModels:
    return LiveModels(container)  # type: ignore[arg-type]


async def test_a_hundred_requests_at_once_read_storage_once(models: LiveModels, container: StubContainer) -> None:
    found = await asyncio.gather(*(models.find("support") for _ in range(100)))
    assert {model.scoring_uri for model in found if model} == {URI}
    assert (container.lists, container.downloads) == (1, 1)


async def test_an_unchanged_record_is_listed_but_not_read_again(
    models: LiveModels, container: StubContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FRESH_SECONDS", 0)
    monkeypatch.setattr(live, "STALE_SECONDS", 0)
    for _ in range(3):
        await models.all()
    assert (container.lists, container.downloads) == (3, 1)


async def test_an_old_list_answers_at_once_while_a_new_one_is_read(
    models: LiveModels, container: StubContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FRESH_SECONDS", 0)
    await models.all()
    container.put_live("sales", URI)
    assert set(await models.all()) == {"support"}
    await asyncio.sleep(0.01)
    assert set(await models.all()) == {"sales", "support"}


async def test_a_model_that_just_went_live_is_found_at_once(
    models: LiveModels, container: StubContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOK_AGAIN_SECONDS", 0)
    await models.all()
    container.put_live("sales", URI)
    assert await models.find("sales")


async def test_a_guessed_name_does_not_read_storage_each_time(models: LiveModels, container: StubContainer) -> None:
    for number in range(50):
        assert await models.find(f"guess-{number}") is None
    assert container.lists == 1


async def test_storage_that_fails_leaves_the_last_list_in_place(
    models: LiveModels, container: StubContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await models.all()
    monkeypatch.setattr(live, "FRESH_SECONDS", 0)
    monkeypatch.setattr(live, "STALE_SECONDS", 0)
    container.failure = ServiceRequestError("down")
    assert await models.find("support")


async def test_storage_that_hangs_leaves_the_last_list_in_place(
    models: LiveModels, container: StubContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await models.all()
    for name, seconds in {"FRESH_SECONDS": 0, "STALE_SECONDS": 0, "WAIT_SECONDS": 0.05}.items():
        monkeypatch.setattr(live, name, seconds)
    never = asyncio.Event()
    monkeypatch.setattr(models, "_read", never.wait)
    assert await asyncio.wait_for(models.find("support"), 1)
    never.set()


async def test_storage_that_never_answered_is_an_error_that_says_so(
    models: LiveModels, container: StubContainer
) -> None:
    container.failure = ServiceRequestError("down")
    with pytest.raises(LiveModelsUnavailable, match="cannot be read from storage"):
        await models.find("support")
    container.failure = None
    assert await models.find("support")


async def test_a_missing_container_means_no_live_models(models: LiveModels, container: StubContainer) -> None:
    container.failure = ResourceNotFoundError("ContainerNotFound")
    assert await models.all() == {}


def test_the_connections_are_closed_with_their_loop(models: LiveModels, container: StubContainer) -> None:
    async def read() -> None:
        await models.all()
        assert not container.closed

    asyncio.run(read())
    assert container.closed == 2  # the container's, and the credential's


async def test_a_broken_record_hides_only_itself(
    models: LiveModels, container: StubContainer, caplog: pytest.LogCaptureFixture
) -> None:
    container.records["live/broken.json"] = b"{"
    container.records["live/half.json"] = json.dumps({"model": "half"}).encode()
    with caplog.at_level(logging.ERROR):
        assert set(await models.all()) == {"support"}
    assert "blob=live/broken.json" in caplog.text
    assert "scoring_uri" in caplog.text


async def test_a_retired_model_is_no_longer_live(
    models: LiveModels, container: StubContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await models.all()
    container.records.clear()
    monkeypatch.setattr(live, "STALE_SECONDS", 0)
    monkeypatch.setattr(live, "FRESH_SECONDS", 0)
    assert await models.find("support") is None
