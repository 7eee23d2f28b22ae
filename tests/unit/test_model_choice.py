"""What a request's ``model`` means: a live model, or one version or deployment of it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import openai
import pytest
from aiohttp import web
from chat_support import StubContainer, World

from function_app import live, model_choice
from function_app.callers import Caller
from function_app.live import Kept, LiveModel, LiveModels
from function_app.live_record import with_replaced
from function_app.model_choice import choose
from function_app.openai_api import ApiError

HELLO = [{"role": "user", "content": "Hi"}]
NEW, OLD, OTHER = "r-0123456789ab", "r-aaaaaaaaaaaa", "r-bbbbbbbbbbbb"
ANYBODY = Caller("tests")
LATER = datetime.now(UTC) + timedelta(minutes=10)


def record(**fields: Any) -> dict[str, Any]:
    return {
        "model": "support", "endpoint": "e", "deployment": NEW, "scoring_uri": "https://x/v1/chat/completions",
        "model_version": "2026", "run_id": "support-0123456789ab",
        "replaced": {"deployment": OLD, "model_version": "2025"}, **fields,
    }  # fmt: skip


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> StubContainer:
    stub = StubContainer()
    models = LiveModels(stub)  # type: ignore[arg-type]
    monkeypatch.setattr(model_choice, "live_models", lambda: models)
    monkeypatch.setattr(live, "LOOK_AGAIN_SECONDS", 0)
    put(stub)
    return stub


def put(container: StubContainer, **fields: Any) -> None:
    found = {name: value for name, value in record(**fields).items() if value is not None}
    container.records["live/support.json"] = json.dumps(found).encode()


@pytest.mark.parametrize(
    ("asked", "deployment", "pinned"),
    [
        ("support", "", False),
        ("support@2026", NEW, True),
        (f"support@{NEW}", NEW, True),
        ("support@2025", OLD, True),
        (f"support@{OLD}", OLD, True),
        (f"support@{OTHER}", OTHER, True),  # a challenger's, say: the endpoint knows
    ],
)
async def test_a_name_means_a_deployment(container: StubContainer, asked: str, deployment: str, pinned: bool) -> None:
    choice = await choose(asked, ANYBODY)
    assert (choice.live.model, choice.deployment, choice.pinned, choice.asked) == ("support", deployment, pinned, asked)


@pytest.mark.parametrize(
    "asked",
    ["other", "support@", "support@2024", "support@r-1", "support@r-AAAAAAAAAAAA", "support@2026@2025", "@2026"],
)
async def test_what_is_not_there_is_a_404_that_lists_what_is(container: StubContainer, asked: str) -> None:
    with pytest.raises(ApiError) as error:
        await choose(asked, ANYBODY)
    assert (error.value.status, error.value.code) == (404, "model_not_found")
    there = (
        "support" if not asked.startswith("support") else f"support@2026, support@2025, support@{NEW}, support@{OLD}"
    )
    assert there in str(error.value)


async def test_a_key_whose_models_are_not_live_is_not_told_that_none_is(container: StubContainer) -> None:
    with pytest.raises(ApiError, match="'sales' is not live, nor is any other that this key may use"):
        await choose("sales", Caller("shop", models=frozenset({"sales"})))
    container.records.clear()
    with pytest.raises(ApiError, match="No model is live yet"):
        await choose("sales", ANYBODY)


async def test_a_model_that_is_not_the_callers_is_neither_given_nor_described(container: StubContainer) -> None:
    stranger = Caller("stranger", models=frozenset({"sales"}))
    for asked in ("support", "support@2026", "support@2024"):
        with pytest.raises(ApiError) as error:
            await choose(asked, stranger)
        assert error.value.status == 403
        assert "2025" not in str(error.value)
    with pytest.raises(ApiError) as error:
        await choose("sales", stranger)
    assert error.value.status == 404
    assert "support" not in str(error.value)


async def test_a_version_that_went_live_a_moment_ago_is_found(container: StubContainer) -> None:
    await choose("support", ANYBODY)
    put(container, model_version="2027", deployment=OTHER, replaced={"deployment": NEW, "model_version": "2026"})
    assert (await choose("support@2027", ANYBODY)).deployment == OTHER


async def test_the_replaced_deployment_is_asked_in_its_own_way(container: StubContainer) -> None:
    kept = {"deployment": OLD, "model_version": "2025", "wire": "mlflow", "scoring_uri": "https://x/score"}
    put(container, replaced=kept)
    found = (await choose("support@2025", ANYBODY)).live
    assert (found.wire, found.scoring_uri, found.model_version) == ("mlflow", "https://x/score", "2025")
    assert (await choose("support@2026", ANYBODY)).live.wire == ""


async def test_the_replaced_version_goes_with_its_bake_time(container: StubContainer) -> None:
    kept = {"deployment": OLD, "model_version": "2025", "until": LATER.isoformat()}
    put(container, replaced=kept)
    assert (await choose("support@2025", ANYBODY)).deployment == OLD
    put(container, replaced={**kept, "until": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()})
    with pytest.raises(ApiError, match=f"pinned as support@2026, support@{NEW}\\."):
        await choose("support@2024", ANYBODY)
    with pytest.raises(ApiError):
        await choose("support@2025", ANYBODY)


async def test_a_serverless_endpoint_has_a_version_and_no_deployments(container: StubContainer) -> None:
    put(container, deployment="", auth="key", replaced=None)
    choice = await choose("support@2026", ANYBODY)
    assert (choice.deployment, choice.pinned) == ("", True)
    with pytest.raises(ApiError, match="support@2026"):
        await choose(f"support@{OTHER}", ANYBODY)


async def test_an_answer_says_the_name_that_was_asked_and_the_endpoint_gets_the_plain_one(world: World) -> None:
    name = f"support@{NEW}"
    ask = world.client().chat.completions.create
    assert (await ask(model=name, messages=HELLO)).model == name
    assert {chunk.model async for chunk in await ask(model=name, messages=HELLO, stream=True)} == {name}
    assert {headers["azureml-model-deployment"] for headers in world.endpoint.headers} == {NEW}
    assert {body["model"] for body in world.endpoint.bodies} == {"support"}
    assert world.used == ["support"]


async def test_a_pinned_deployment_that_fails_is_not_replaced_by_another(world: World) -> None:
    async def fail(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "out of order"}}, status=503)

    world.endpoint.handler = fail
    with pytest.raises(openai.InternalServerError):
        await world.client().chat.completions.create(model=f"support@{NEW}", messages=HELLO)
    assert len(world.endpoint.bodies) == 1


async def test_a_deployment_that_the_endpoint_does_not_know_is_a_404(world: World) -> None:
    async def unknown(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": f"There is no deployment {OTHER}."}}, status=404)

    world.endpoint.handler = unknown
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match=f"support@{NEW}") as error:
            await world.client().chat.completions.create(model=f"support@{OTHER}", messages=HELLO, stream=stream)
        assert error.value.code == "model_not_found"


async def test_models_are_described_with_what_can_be_pinned(world: World) -> None:
    row = world.container.records["live/support.json"]
    assert isinstance(row, dict)
    row["replaced"] = {"deployment": OLD, "model_version": "0"}
    client = world.client().models
    listed = (await client.list()).data
    assert [(each.id, each.versions, each.deployments) for each in listed] == [("support", ["1", "0"], [NEW, OLD])]
    assert (await client.retrieve("support@1")).id == "support@1"
    old = await client.retrieve(f"support@{OLD}")
    assert (old.versions, old.deployments, old.run_id) == (["0"], [OLD], "")
    for pin in (OTHER, "7"):
        with pytest.raises(openai.NotFoundError, match="support@0"):
            await client.retrieve(f"support@{pin}")


def test_the_live_record_keeps_the_deployment_that_it_replaces() -> None:
    before = record(deployment=OLD, model_version="2025", wire="mlflow", scoring_uri="https://x/score")
    written = msgspec.json.encode(with_replaced(record(replaced=None), before, LATER))
    kept = Kept(OLD, "2025", "mlflow", "https://x/score", LATER)
    assert msgspec.json.decode(written, type=LiveModel).replaced == kept


def test_the_same_release_written_again_keeps_what_it_has_replaced() -> None:
    again = {name: value for name, value in record().items() if name != "replaced"}
    assert with_replaced(again, record(), LATER)["replaced"] == {"deployment": OLD, "model_version": "2025"}
    assert "replaced" not in with_replaced(again, again, LATER)


@pytest.mark.parametrize(
    "before",
    [{}, {"endpoint": "another", "deployment": OLD}, {"endpoint": "e"}, {"endpoint": "e", "deployment": ""}],
)
def test_what_is_not_on_the_endpoint_any_more_cannot_be_pinned(before: dict[str, Any]) -> None:
    made = {name: value for name, value in record().items() if name != "replaced"}
    assert with_replaced(made, before, LATER) == made


def test_a_serverless_release_replaces_nothing_that_can_be_pinned() -> None:
    made = {**record(), "deployment": ""}
    del made["replaced"]
    assert with_replaced(made, {**made, "deployment": OLD}, LATER) == made
