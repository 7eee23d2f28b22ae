"""A local Event Grid: subscriptions of webhooks, durable at-least-once delivery, retries and dead letters."""

import asyncio
import contextlib
import heapq
import inspect
import json
import logging
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import aiohttp

from .event_envelopes import (
    Event,
    blob_created,
    cloud_event,
    run_completed,
    run_status_changed,
    timestamp,
    validation_event,
)
from .event_retries import RETRY_SECONDS, SUCCESSES, after_attempt, in_words

__all__ = ["Event", "EventGrid", "HandshakeError", "blob_created", "run_completed", "run_status_changed"]

log = logging.getLogger(__name__)

DeadLetter = Path | Callable[[Event], Awaitable[None] | None]
Schema = Literal["EventGridSchema", "CloudEventSchemaV1_0"]

# How long Event Grid waits for an answer.
RESPONSE_SECONDS = 30
CONCURRENT_DELIVERIES = 8
HANDSHAKE_PAUSE_SECONDS = 0.2

_TABLES = """
CREATE TABLE IF NOT EXISTS subscriptions (name TEXT PRIMARY KEY, settings TEXT NOT NULL, validated INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY, subscription TEXT NOT NULL, event TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, published REAL NOT NULL);
"""


class HandshakeError(Exception):
    """The webhook answered, but refused the validation handshake; the message says how."""


@dataclass(frozen=True)
class Subscription:
    """Which events go to which webhook."""

    name: str
    topic: str
    endpoint_url: str
    event_types: tuple[str, ...]
    subject_begins_with: str
    subject_ends_with: str
    schema: Schema
    max_delivery_attempts: int

    def wants(self, topic: str, event: Event) -> bool:
        """Filters compare without case, as Event Grid does unless told otherwise; no types means all."""
        subject = str(event["subject"]).lower()
        return (
            topic.lower() == self.topic.lower()
            and (not self.event_types or event["eventType"] in self.event_types)
            and subject.startswith(self.subject_begins_with.lower())
            and subject.endswith(self.subject_ends_with.lower())
        )


class EventGrid:
    """Takes events, keeps them in SQLite until each subscriber has them, and survives restarts.

    It delivers from the first ``subscribe`` on. ``time_scale`` multiplies the waits between attempts (0.01 makes
    10 s into 0.1 s). ``copies`` and ``drop`` are faults for tests and may be changed at any time: every event is
    queued that many times; one for which ``drop(event)`` is true is lost.
    """

    def __init__(self, database: Path, time_scale: float = 1.0, copies: int = 1) -> None:
        self.copies = copies
        self.drop: Callable[[Event], bool] | None = None
        self._time_scale = time_scale
        self._db = sqlite3.connect(database, isolation_level=None)
        # WAL with NORMAL survives the end of the process at any point; only a power cut may lose the last moment.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_TABLES)
        self._subscriptions: dict[str, Subscription] = {}
        self._validated: set[str] = set()
        for settings, validated in self._db.execute("SELECT settings, validated FROM subscriptions"):
            saved = json.loads(settings)
            subscription = Subscription(**{**saved, "event_types": tuple(saved["event_types"])})
            self._subscriptions[subscription.name] = subscription
            if validated:
                self._validated.add(subscription.name)
        self._dead_letters: dict[str, DeadLetter] = {}
        # Deliveries by due time (wall clock: a restart or a sleeping laptop must not postpone them).
        self._queue: list[tuple[float, int]] = self._db.execute(
            "SELECT due, id FROM deliveries ORDER BY due"
        ).fetchall()
        self._changed = asyncio.Event()
        self._free = asyncio.Semaphore(CONCURRENT_DELIVERIES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._dispatcher: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop delivering; what is not done stays in the database for the next start."""
        running = [task for task in (self._dispatcher, *self._tasks) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        self._db.close()

    async def subscribe(
        self,
        name: str,
        topic: str,
        endpoint_url: str,
        event_types: Sequence[str] = (),
        subject_begins_with: str = "",
        subject_ends_with: str = "",
        schema: Schema = "EventGridSchema",
        max_delivery_attempts: int = 30,
        dead_letter: DeadLetter | None = None,
    ) -> None:
        """Create or replace a subscription; returns once the webhook has proved that it wants events.

        While nothing answers at the address it keeps asking. Events published meanwhile wait for it, which Azure
        would not do; locally a file dropped while the host starts must not be lost. ``dead_letter``, a function or
        a JSON Lines file, takes the undeliverable events; it is not persisted. Raises HandshakeError.
        """
        types, begins, ends = tuple(event_types), subject_begins_with, subject_ends_with
        new = Subscription(name, topic, endpoint_url, types, begins, ends, schema, max_delivery_attempts)
        if self._subscriptions.get(name) != new:
            self._validated.discard(name)
        self._subscriptions[name] = new
        if dead_letter is not None:
            self._dead_letters[name] = dead_letter
        self._save(new)
        while True:
            if await self._handshake(new):
                break
            await asyncio.sleep(HANDSHAKE_PAUSE_SECONDS)
        self._validated.add(name)
        self._save(new)
        self._changed.set()
        log.info("event=subscribed subscription=%s schema=%s", name, schema)

    def forget_others(self, names: set[str]) -> None:
        """Delete the saved subscriptions that are not among ``names``, with what waits for them."""
        for name in set(self._subscriptions) - names:
            del self._subscriptions[name]
            self._validated.discard(name)
            with self._db:
                self._db.execute("DELETE FROM subscriptions WHERE name = ?", (name,))
                self._db.execute("DELETE FROM deliveries WHERE subscription = ?", (name,))
            log.info("event=unsubscribed subscription=%s", name)

    async def publish(self, topic: str, events: Iterable[Event]) -> None:
        """Queue ``events`` (Event Grid schema) for every subscription to ``topic`` that wants them; durable on return.

        ``topic`` is any name that publisher and subscriptions agree on; the envelopes carry their own.
        """
        now = time.time()
        with self._db:
            self._db.execute("BEGIN")
            for event in events:
                if self.drop is not None and self.drop(event):
                    log.info("event=dropped id=%s", event["id"])
                    continue
                for to in self._subscriptions.values():
                    for _ in range(self.copies if to.wants(topic, event) else 0):
                        row = self._db.execute(
                            "INSERT INTO deliveries (subscription, event, due, published) VALUES (?, ?, ?, ?)",
                            (to.name, json.dumps(event), now, now),
                        ).lastrowid
                        heapq.heappush(self._queue, (now, row or 0))
        self._changed.set()

    @property
    def _http(self) -> aiohttp.ClientSession:
        """The client; made, with the dispatcher, once there is an event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=RESPONSE_SECONDS))
            self._dispatcher = asyncio.create_task(self._dispatch())
        return self._session

    def pending(self) -> int:
        """How many deliveries are not done yet, those that wait for a retry included."""
        return int(self._db.execute("SELECT count(*) FROM deliveries").fetchone()[0])

    def _save(self, subscription: Subscription) -> None:
        validated = subscription.name in self._validated
        row = (subscription.name, json.dumps(asdict(subscription)), validated)
        self._db.execute("INSERT OR REPLACE INTO subscriptions VALUES (?, ?, ?)", row)

    async def _handshake(self, to: Subscription) -> bool:
        """Ask once: True when the webhook agreed, False when it is not up yet. Raises HandshakeError."""
        try:
            if to.schema == "CloudEventSchemaV1_0":
                origin = {"WebHook-Request-Origin": "eventgrid.azure.net"}
                async with self._http.options(to.endpoint_url, headers=origin) as response:
                    allowed = response.headers.get("WebHook-Allowed-Origin", "")
                    agreed = allowed in ("*", "eventgrid.azure.net")
            else:
                code = str(uuid.uuid4())
                event = validation_event(to.topic, code)
                headers = _headers(to, "SubscriptionValidation", event, 0)
                body = json.dumps([event])
                async with self._http.post(to.endpoint_url, data=body, headers=headers) as response:
                    agreed = _echoed(await response.text()) == code
        except (aiohttp.ClientError, TimeoutError):
            return False
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return False
        if response.status not in SUCCESSES or not agreed:
            raise HandshakeError(
                f"The webhook of the event subscription {to.name!r} refused the validation handshake with status"
                f" {response.status}; check its function name and its key."
            )
        return True

    async def _dispatch(self) -> None:
        """Start what is due, earliest first, a few at a time."""
        while True:
            self._changed.clear()
            parked = []
            while self._queue and self._queue[0][0] <= time.time():
                await self._free.acquire()
                entry = heapq.heappop(self._queue)
                found = self._db.execute("SELECT subscription FROM deliveries WHERE id = ?", entry[1:]).fetchone()
                if found is None or found[0] not in self._validated:
                    self._free.release()
                    parked += [entry] if found else []
                    continue
                task = asyncio.create_task(self._attempt(entry[1]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            wait = min(self._queue[0][0] - time.time(), 30.0) if self._queue else None
            for entry in parked:
                heapq.heappush(self._queue, entry)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait)

    async def _attempt(self, row: int) -> None:
        """POST one event once, as a batch of one, and settle its row."""
        try:
            found = self._db.execute(
                "SELECT subscription, event, attempts, published FROM deliveries WHERE id = ?", (row,)
            ).fetchone()
            if found is None:  # its subscription was deleted
                return
            name, text, attempts, published = found
            to, event = self._subscriptions[name], json.loads(text)
            outcome: int | str
            try:
                body = json.dumps([event] if to.schema == "EventGridSchema" else cloud_event(event))
                headers = _headers(to, "Notification", event, attempts)
                async with self._http.post(to.endpoint_url, data=body, headers=headers) as response:
                    outcome = response.status
            except TimeoutError:
                outcome = "TimedOut"
            except aiohttp.ClientError:
                outcome = "ConnectionFailed"
            log.info("event=delivery subscription=%s id=%s try=%d outcome=%s", name, event["id"], attempts, outcome)
            await self._settle(row, to, event, attempts + 1, published, outcome)
        except Exception:  # the edge of the task: a broken dead-letter function must not lose the event
            log.exception("event=delivery row=%d outcome=broken", row)
            heapq.heappush(self._queue, (time.time() + self._time_scale * RETRY_SECONDS[0], row))
            self._changed.set()
        finally:
            self._free.release()

    async def _settle(
        self, row: int, to: Subscription, event: Event, attempts: int, published: float, outcome: int | str
    ) -> None:
        now = time.time()
        age = (now - published) / self._time_scale
        follows = after_attempt(outcome, attempts, age, to.max_delivery_attempts)
        if isinstance(follows, int | float):
            due = now + follows * self._time_scale
            self._db.execute("UPDATE deliveries SET attempts = ?, due = ? WHERE id = ?", (attempts, due, row))
            heapq.heappush(self._queue, (due, row))
            self._changed.set()
            return
        if follows is not None:
            await self._bury(to, event, follows, attempts, published, outcome)
        self._db.execute("DELETE FROM deliveries WHERE id = ?", (row,))

    async def _bury(
        self, to: Subscription, event: Event, reason: str, attempts: int, published: float, outcome: int | str
    ) -> None:
        log.warning("event=dead-letter subscription=%s id=%s reason=%s", to.name, event["id"], reason)
        letter = {
            **event,
            "deadLetterReason": reason,
            "deliveryAttempts": attempts,
            "lastDeliveryOutcome": in_words(outcome),
            "publishTime": timestamp(published),
            "lastDeliveryAttemptTime": timestamp(),
        }
        match self._dead_letters.get(to.name):
            case Path() as path:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(letter) + "\n")
            case None:
                pass  # as in Azure without a dead-letter destination: the event is gone
            case take:
                result = take(letter)
                if inspect.isawaitable(result):
                    await result


def _headers(to: Subscription, kind: str, event: Event, attempts: int) -> dict[str, str]:
    content = "application/json" if to.schema == "EventGridSchema" else "application/cloudevents+json"
    return {
        "Content-Type": f"{content}; charset=utf-8",
        "aeg-event-type": kind,
        "aeg-subscription-name": to.name.upper(),  # Azure sends it in capitals
        "aeg-delivery-count": str(attempts),
        "aeg-data-version": event["dataVersion"],
        "aeg-metadata-version": event["metadataVersion"],
    }


def _echoed(body: str) -> str | None:
    try:
        return str(json.loads(body)["validationResponse"])
    except (ValueError, LookupError, TypeError):
        return None
