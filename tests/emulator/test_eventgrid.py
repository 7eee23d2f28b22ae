"""The local Event Grid against real webhooks."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from host_processes import Azurite, free_port, running_host
from hypothesis import given
from hypothesis import strategies as st

from emulator.events.eventgrid import Event, EventGrid, HandshakeError, blob_created, run_completed, run_status_changed
from emulator.events.retries import RETRY_SECONDS, after_attempt
from emulator.faults import Faults

pytest_plugins = ("host_fixtures",)

TOPIC = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a"


class Webhook:
    """A subscriber that answers ``statuses`` in turn, then 202, and keeps what it was sent."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook?code=secret"
        self.statuses: list[int] = []
        self.handshakes: list[dict[str, str]] = []
        self.received: list[tuple[dict[str, str], Any]] = []
        self.refuse = False
        self.concurrent = self.most_concurrent = 0
        app = web.Application()
        app.router.add_post("/hook", self._post)
        app.router.add_options("/hook", self._options)
        self._runner = web.AppRunner(app)

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def close(self) -> None:
        await self._runner.cleanup()

    @property
    def ids(self) -> list[str]:
        return [(body[0] if isinstance(body, list) else body)["id"] for _, body in self.received]

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.json()
        if request.headers["aeg-event-type"] == "SubscriptionValidation":
            self.handshakes.append(dict(request.headers))
            code = "wrong" if self.refuse else body[0]["data"]["validationCode"]
            return web.json_response({"validationResponse": code})
        self.concurrent += 1
        self.most_concurrent = max(self.most_concurrent, self.concurrent)
        await asyncio.sleep(0)
        self.concurrent -= 1
        self.received.append((dict(request.headers), body))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 202)

    async def _options(self, request: web.Request) -> web.Response:
        self.handshakes.append(dict(request.headers))
        return web.Response(headers={"WebHook-Allowed-Origin": request.headers["WebHook-Request-Origin"]})


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    webhook = Webhook()
    await webhook.start()
    yield webhook
    await webhook.close()


Opener = Callable[[], EventGrid]


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def open_grid(tmp_path: Path, faults: Faults) -> AsyncIterator[Opener]:
    """Opens an Event Grid on the test's database; 10 s between tries become 10 ms."""
    opened: list[EventGrid] = []

    def open_one() -> EventGrid:
        opened.append(EventGrid(tmp_path / "events.db", faults, time_scale=0.001))
        return opened[-1]

    yield open_one
    for grid in opened:
        await grid.close()


@pytest.fixture
async def grid(open_grid: Opener) -> EventGrid:
    return open_grid()


def _blob(name: str = "m/x.jsonl", container: str = "datasets") -> Event:
    facts: dict[str, Any] = {"api": "PutBlob", "etag": '"0x8D"', "content_type": "text/plain", "content_length": 3}
    url = f"https://a/{container}/{name}"
    return blob_created(TOPIC, container, name, blob_type="BlockBlob", url=url, **facts)


async def _until(condition: Callable[[], Any], what: str) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    try:
        await asyncio.wait_for(poll(), 20)
    except TimeoutError:
        pytest.fail(f"waited in vain for {what}")


async def test_an_event_arrives_with_envelope_and_headers(grid: EventGrid, webhook: Webhook) -> None:
    await grid.subscribe("on-upload", "storage", webhook.url)
    event = _blob()
    await grid.publish("storage", [event])
    await _until(lambda: grid.pending() == 0, "the delivery")
    ((headers, body),) = webhook.received
    assert body == [event]
    assert body[0]["subject"] == "/blobServices/default/containers/datasets/blobs/m/x.jsonl"
    assert body[0]["data"]["eTag"] == "0x8D"
    expected = {
        "aeg-event-type": "Notification", "aeg-subscription-name": "ON-UPLOAD", "aeg-delivery-count": "0",
        "aeg-metadata-version": "1", "aeg-data-version": "", "Content-Type": "application/json; charset=utf-8",
    }  # fmt: skip
    assert expected.items() <= headers.items()
    assert webhook.handshakes[0]["aeg-event-type"] == "SubscriptionValidation"


def test_run_events_are_shaped_as_documented() -> None:
    run: dict[str, Any] = {"experiment_id": "e", "experiment_name": "n", "run_id": "r", "run_tags": {"a": "b"}}
    changed, completed = run_status_changed(TOPIC, status="Failed", **run), run_completed(TOPIC, **run)
    assert changed["subject"] == completed["subject"] == "experiments/e/runs/r"
    assert changed["eventType"] == "Microsoft.MachineLearningServices.RunStatusChanged"
    assert completed["eventType"] == "Microsoft.MachineLearningServices.RunCompleted"
    assert changed["data"] == completed["data"] | {"runStatus": "Failed"}


async def test_cloud_events_go_one_by_one_after_their_own_handshake(grid: EventGrid, webhook: Webhook) -> None:
    await grid.subscribe("s", "storage", webhook.url, schema="CloudEventSchemaV1_0")
    event = _blob()
    await grid.publish("storage", [event])
    await _until(lambda: webhook.received, "the delivery")
    ((headers, body),) = webhook.received
    assert (body["specversion"], body["source"], body["type"]) == ("1.0", TOPIC, event["eventType"])
    assert (body["id"], body["data"]) == (event["id"], event["data"])
    assert headers["Content-Type"].startswith("application/cloudevents+json")
    assert webhook.handshakes[0]["WebHook-Request-Origin"] == "eventgrid.azure.net"


async def test_subscribing_waits_for_the_webhook_and_so_do_events(grid: EventGrid) -> None:
    late = Webhook()
    subscribing = asyncio.create_task(grid.subscribe("s", "storage", late.url))
    await asyncio.sleep(0)
    event = _blob()
    await grid.publish("storage", [event])
    await late.start()
    await asyncio.wait_for(subscribing, 20)
    await _until(lambda: late.ids == [event["id"]], "the delivery")
    await late.close()


async def test_a_refused_handshake_says_so(grid: EventGrid, webhook: Webhook) -> None:
    webhook.refuse = True
    with pytest.raises(HandshakeError, match="'s' refused the validation handshake with status 200") as caught:
        await grid.subscribe("s", "storage", webhook.url)
    assert "secret" not in str(caught.value)
    with pytest.raises(HandshakeError, match="status 404"):
        await grid.subscribe("s", "storage", webhook.url.replace("/hook", "/nowhere"))


async def test_only_wanted_events_are_delivered(grid: EventGrid, webhook: Webhook) -> None:
    kind, begin = "Microsoft.Storage.BlobCreated", "/blobServices/default/containers/DataSets/"
    await grid.subscribe("s", "storage", webhook.url, [kind], begin, ".jsonl")
    wanted = _blob()
    others = [_blob("m/x.txt"), _blob(container="runs"), _blob() | {"eventType": "Microsoft.Storage.BlobDeleted"}]
    await grid.publish("storage", [*others, wanted])
    await grid.publish("workspace", [_blob()])
    await _until(lambda: grid.pending() == 0, "the delivery")
    assert webhook.ids == [wanted["id"]]


async def test_a_failed_delivery_is_tried_again(grid: EventGrid, webhook: Webhook) -> None:
    webhook.statuses = [500, 404, 302]
    await grid.subscribe("s", "storage", webhook.url)
    await grid.publish("storage", [_blob()])
    await _until(lambda: grid.pending() == 0, "the delivery")
    assert [headers["aeg-delivery-count"] for headers, _ in webhook.received] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("status", "word"),
    [(400, "BadRequest"), (401, "Unauthorized"), (403, "Forbidden"), (413, "RequestEntityTooLarge")],
)
async def test_a_final_status_dead_letters_at_once(
    grid: EventGrid, webhook: Webhook, tmp_path: Path, status: int, word: str
) -> None:
    webhook.statuses = [status]
    await grid.subscribe("s", "storage", webhook.url, dead_letter=tmp_path / "dead.jsonl")
    event = _blob()
    await grid.publish("storage", [event])
    await _until(lambda: grid.pending() == 0, "the end")
    assert len(webhook.received) == 1
    (letter,) = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert letter.items() >= event.items()
    assert letter["deadLetterReason"] == f"UndeliverableDueToHttp{word}"
    assert (letter["deliveryAttempts"], letter["lastDeliveryOutcome"]) == (1, word)


async def test_too_many_attempts_dead_letter_through_a_function(grid: EventGrid, webhook: Webhook) -> None:
    webhook.statuses = [500] * 9
    letters: list[Event] = []
    broken = True

    async def keep(letter: Event) -> None:
        nonlocal broken
        if broken:
            broken = False
            raise OSError("the first time, the dead-letter store is away")
        letters.append(letter)

    await grid.subscribe("s", "storage", webhook.url, max_delivery_attempts=3, dead_letter=keep)
    await grid.publish("storage", [_blob()])
    await _until(lambda: letters, "the dead letter")
    assert letters[0]["deadLetterReason"] == "MaxDeliveryAttemptsExceeded"
    assert letters[0]["deliveryAttempts"] == 3
    await _until(lambda: grid.pending() == 0, "the end")


async def test_what_is_published_is_on_disk_and_outlives_a_restart(
    open_grid: Opener, webhook: Webhook, tmp_path: Path
) -> None:
    grid = open_grid()
    await grid.subscribe("s", "storage", webhook.url, ["Microsoft.Storage.BlobCreated"])
    webhook.statuses = [500] * 1000
    events = [_blob(f"m/{number}") for number in range(5)]
    await grid.publish("storage", events)
    with sqlite3.connect(tmp_path / "events.db") as other:
        assert other.execute("SELECT count(*) FROM deliveries").fetchone() == (5,)
    await _until(lambda: webhook.received, "a failed try")
    await grid.close()
    webhook.statuses.clear()
    webhook.received.clear()
    again = open_grid()
    assert again.pending() == 5
    await again.subscribe("s", "storage", webhook.url, ["Microsoft.Storage.BlobCreated"])
    await _until(lambda: again.pending() == 0, "the deliveries")
    assert set(webhook.ids) >= {event["id"] for event in events}


async def test_copies_are_delivered_and_lost_events_are_not(grid: EventGrid, webhook: Webhook, faults: Faults) -> None:
    await grid.subscribe("s", "storage", webhook.url)
    faults.add({"kind": "event", "copies": 3})
    faults.add({"kind": "event", "subject": "*LOST*", "lost": True})
    kept = _blob("kept")
    await grid.publish("storage", [kept, _blob("lost")])
    await _until(lambda: grid.pending() == 0, "the deliveries")
    assert webhook.ids == [kept["id"]] * 3
    assert [fault["hits"] for fault in faults.shown()] == [1, 1]


async def test_a_fault_can_be_of_one_subscription(grid: EventGrid, webhook: Webhook, faults: Faults) -> None:
    for name in ("audit", "train"):
        await grid.subscribe(name, "storage", webhook.url)
    faults.add({"kind": "event", "subscription": "audit", "event_type": "microsoft.storage.*", "lost": True})
    await grid.publish("storage", [_blob()])
    await _until(lambda: grid.pending() == 0, "the delivery")
    assert [headers["aeg-subscription-name"] for headers, _ in webhook.received] == ["TRAIN"]


async def test_a_delayed_event_is_overtaken_and_waits_on_disk(
    open_grid: Opener, webhook: Webhook, faults: Faults
) -> None:
    grid = open_grid()
    await grid.subscribe("s", "storage", webhook.url)
    faults.add({"kind": "event", "subject": "*/late", "delay": 0.5})
    late, early = _blob("late"), _blob("early")
    started = time.monotonic()
    await grid.publish("storage", [late, early])
    await _until(lambda: webhook.ids == [early["id"]], "the event that is not delayed")
    await grid.close()
    again = open_grid()
    await again.subscribe("s", "storage", webhook.url)
    await _until(lambda: again.pending() == 0, "the delayed event")
    assert webhook.ids == [early["id"], late["id"]]
    assert time.monotonic() - started >= 0.5


async def test_reordered_events_all_arrive_in_another_order_and_the_seed_repeats_it(
    grid: EventGrid, webhook: Webhook, faults: Faults
) -> None:
    await grid.subscribe("s", "storage", webhook.url)
    events = [_blob(str(number)) for number in range(5)]
    # The five moments of this seed are 87 ms apart at least, more than what a delivery takes.
    orders = []
    for _ in range(2):
        fault = faults.add({"kind": "event", "reorder_within": 0.5, "seed": 84})
        await grid.publish("storage", events)
        await _until(lambda: grid.pending() == 0, "the deliveries")
        orders.append(webhook.ids)
        webhook.received.clear()
        faults.remove(fault["id"])
    assert sorted(orders[0]) == sorted(event["id"] for event in events)
    assert orders[0] != [event["id"] for event in events]
    assert orders[0] == orders[1]


async def test_event_grid_can_see_a_status_that_the_webhook_did_not_give(
    grid: EventGrid, webhook: Webhook, faults: Faults
) -> None:
    await grid.subscribe("s", "storage", webhook.url)
    for fault in ({"status": 503, "when": "after"}, {"drop": True}):
        faults.add({"kind": "webhook", "times": 1, **fault})
    await grid.publish("storage", [_blob()])
    await _until(lambda: grid.pending() == 0, "the delivery")
    # Try 0 met the newer fault and never left; 1 arrived, but Event Grid was told otherwise; so 2 came.
    assert [headers["aeg-delivery-count"] for headers, _ in webhook.received] == ["1", "2"]


async def test_a_thousand_events_arrive_a_few_at_a_time(grid: EventGrid, webhook: Webhook) -> None:
    await grid.subscribe("s", "storage", webhook.url)
    events = [_blob(f"m/{number}") for number in range(1000)]
    await grid.publish("storage", events)
    await _until(lambda: grid.pending() == 0, "the deliveries")
    assert sorted(webhook.ids) == sorted(event["id"] for event in events)
    assert webhook.most_concurrent <= 8


@given(st.integers(500, 599), st.integers(1, 40))
def test_waits_grow_and_success_ends_them(status: int, attempts: int) -> None:
    wait = after_attempt(status, attempts, 0, 100)
    longer = after_attempt(status, attempts + 1, 0, 100)
    assert not isinstance(wait, str | None)
    assert not isinstance(longer, str | None)
    assert RETRY_SECONDS[0] <= wait <= longer
    assert after_attempt(204, attempts, 0, 100) is None


def test_waits_that_depend_on_the_status_and_the_age() -> None:
    assert after_attempt("TimedOut", 1, 0, 30) == 10
    assert after_attempt(408, 1, 0, 30) == 120
    assert after_attempt(503, 1, 0, 30) == 30
    assert after_attempt(500, 30, 0, 30) == "MaxDeliveryAttemptsExceeded"
    assert after_attempt(500, 9, 24 * 3600 - 1, 30) == "TimeToLiveExceeded"


async def test_the_functions_host_and_event_grid_agree(grid: EventGrid, azurite: Azurite, tmp_path: Path) -> None:
    with running_host("classic", tmp_path, azurite.connection_string, "grid") as host:
        base = f"{host.url}/runtime/webhooks/eventgrid?functionName=on_event&code="
        with pytest.raises(HandshakeError, match="401"):
            await grid.subscribe("s", "storage", base + "wrong")
        await grid.subscribe("s", "storage", base + "the-system-key")
        await grid.subscribe("c", "storage", base + "the-system-key", schema="CloudEventSchemaV1_0")
        event = _blob()
        await grid.publish("storage", [event])
        await _until(lambda: grid.pending() == 0, "the deliveries")
        schemas = {row["schema"] for row in host.records("event", id=event["id"])}
        assert schemas == {"EventGridEvent", "CloudEvent"}
        assert len(host.records("event-done", id=event["id"])) == 2
        assert "the-system-key" not in host.log()
