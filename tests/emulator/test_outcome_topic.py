"""How a run has ended, from the app through a custom topic to a subscriber, with the real azure-eventgrid over TLS."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from aiohttp import web
from starlette.applications import Starlette

from emulator.certificates import ensure_certificates
from emulator.config import ConfigError, EventSubscription, Home, load_project
from emulator.control import Control, Server, control_app
from emulator.environment import app_environment
from emulator.identity import identity_app
from function_app import azure_clients, outcomes
from function_app.runs import DatasetVersion, Run, Stage, new_run
from function_app.settings import settings

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


@dataclass
class Topic:
    """A running control process without storage, the app's settings in the environment, and what a webhook got."""

    control: Control
    endpoint: str
    received: list[dict[str, Any]]

    async def arrived(self, count: int) -> list[dict[str, Any]]:
        for _ in range(500):
            if len(self.received) >= count:
                return self.received
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(self.received)} of {count} events arrived")

    def post(self, body: object, audience: str = "https://eventgrid.azure.net", **query: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.control.authority.issue(audience)[0]}"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return requests.post(
            self.endpoint, params={"api-version": "2018-01-01", **query}, data=data, headers=headers, timeout=10
        )


@asynccontextmanager
async def webhook(received: list[dict[str, Any]]) -> AsyncIterator[str]:
    async def take(request: web.Request) -> web.Response:
        body = await request.json()
        if request.headers["aeg-event-type"] == "SubscriptionValidation":
            return web.json_response({"validationResponse": body[0]["data"]["validationCode"]})
        received.extend(body)
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(app: Starlette, port: int, certificates: Path | None = None) -> AsyncIterator[None]:
    tls = {}
    if certificates:
        tls = {"ssl_certfile": certificates / "server.pem", "ssl_keyfile": str(certificates / "server.key")}
    server = Server(uvicorn.Config(app, "127.0.0.1", port, log_level="warning", lifespan="off", **tls))  # type: ignore[arg-type]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Topic]:
    received: list[dict[str, Any]] = []
    async with webhook(received) as url:
        row = EventSubscription("told", "outcomes", webhook=url, event_types=["FineTuning.RunLive"])
        home = Home(replace(load_project(ROOT / "emulator.yaml"), event_subscriptions=[row]), tmp_path)
        state = home.prepare()
        ensure_certificates(tmp_path / "certificates")
        control = Control(home, state)
        environment = app_environment(home, state)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for cached in (settings, azure_clients.credential, outcomes._client):
            cached.cache_clear()
        monkeypatch.setattr(outcomes, "_silent_since", None)
        await control.subscribe()
        arm = serving(control_app(control), state.ports["arm"], tmp_path / "certificates")
        async with serving(identity_app(control.authority, state.identity_header), state.ports["identity"]), arm:
            yield Topic(control, environment["OUTCOME_TOPIC_ENDPOINT"], received)
            outcomes._client().close()  # the server would wait half a minute for the end of its connection
        await control.close()
    for cached in (settings, azure_clients.credential, outcomes._client):
        cached.cache_clear()


def live_run() -> Run:
    run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 1, START), START)
    run.numbers = {
        "dataset": {"train": 90, "eval": 10, "formats": {"chat": 100}},
        "eval": {"base": {"loss": 2.0, "perplexity": 7.4}, "champion": None, "tuned": {"loss": 1.0}},
        "samples": [{"messages": [{"role": "user", "content": "secret question"}], "tuned": "secret answer"}],
    }
    run.links["report"] = "https://account/reports/support.md"
    run.move(Stage.REGISTERED, "model support", START)
    run.move(Stage.LIVE, "all traffic goes to it", START)
    run.outbox = ["RunLive"]
    return run


async def test_an_outcome_reaches_a_subscriber_with_what_it_needs_and_no_content(topic: Topic) -> None:
    run = live_run()
    assert await asyncio.to_thread(outcomes.publish, run)
    run.move(Stage.RETIRED, "replaced by another", START)
    assert await asyncio.to_thread(outcomes.publish, run)  # the answer was lost, say: sent again, later
    first, again = await topic.arrived(2)
    assert first == again  # so its id tells a receiver, and it says what was, not what has become of it
    assert first["id"] == f"{run.id}-RunLive-3"
    assert first["eventType"] == "FineTuning.RunLive"
    assert first["subject"] == f"/models/support/runs/{run.id}"
    assert first["topic"].endswith("/providers/Microsoft.EventGrid/topics/outcomes")
    assert datetime.fromisoformat(first["eventTime"]) == START
    assert first["data"] == {
        "run_id": run.id,
        "model": "support",
        "model_version": "20261121100000000",
        "rollback_to": None,
        "dataset": "support/a.jsonl",
        "dataset_etag": "0x1",
        "stage": "live",
        "reason": "all traffic goes to it",
        "received_at": "2026-11-21T10:00:00+00:00",
        "at": "2026-11-21T10:00:00+00:00",
        "numbers": {"records": {"train": 90, "eval": 10}, "loss": {"base": 2.0, "tuned": 1.0}},
        "links": {"report": "https://account/reports/support.md", "run": f"/api/operations/runs/{run.id}"},
    }
    rejected = live_run()
    rejected.move(Stage.REJECTED, "not better", START)
    rejected.outbox = ["RunRejected", "RunLive"]
    assert await asyncio.to_thread(outcomes.publish, rejected)
    assert [event["eventType"] for event in await topic.arrived(3)] == ["FineTuning.RunLive"] * 3  # by its filter


async def test_a_topic_takes_what_azures_would_take_and_nothing_else(topic: Topic) -> None:
    good = {
        "id": "1", "subject": "s", "eventType": "FineTuning.RunLive", "eventTime": "2026-11-21T10:00:00Z", "data": {},
        "dataVersion": "1",
    }  # fmt: skip

    def status(body: object, **options: str) -> tuple[int, str]:
        answer = topic.post(body, **options)
        return answer.status_code, answer.json()["error"]["code"] if answer.content else ""

    def all_of_them() -> list[tuple[int, str]]:
        return [
            status([good], audience="https://management.azure.com"),
            status([good], **{"api-version": "2019-01-01"}),
            status(good),
            status(b"["),
            status([good, {**good, "specversion": "1.0"}]),
            status([{**good, "subject": ""}]),
            status([{**good, "eventTime": "yesterday"}]),
            status([{**good, "topic": "another"}]),
            status([{**good, "data": "x" * (1 << 20)}]),
            status([good, good]),
        ]

    bad = (400, "BadRequest")
    expected = [(401, "Unauthorized"), bad, bad, bad, bad, bad, bad, bad, (413, "RequestEntityTooLarge"), (200, "")]
    assert await asyncio.to_thread(all_of_them) == expected
    assert [event["dataVersion"] for event in await topic.arrived(2)] == ["1", "1"]
    other = await asyncio.to_thread(requests.post, topic.endpoint.replace("outcomes", "nobody"), timeout=10)
    assert other.status_code == 404


@pytest.mark.parametrize("row", ["{name: a, topic: nobody, function: f}", "{name: a, topic: storage}"])
def test_a_subscription_that_leads_nowhere_is_refused_with_its_name(tmp_path: Path, row: str) -> None:
    path = tmp_path / "emulator.yaml"
    names = "{subscription: s, tenant: t, resource_group: g, workspace: w, location: l"
    path.write_text(f"{names}, event_subscriptions: [{row}]}}")
    with pytest.raises(ConfigError, match=r"emulator.yaml: a (subscribes to nobody|needs either)"):
        load_project(path)
