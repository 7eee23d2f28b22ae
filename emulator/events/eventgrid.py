"""A local Event Grid: takes events, delivers each at least once to the webhooks that want it, retries, dead letters."""

import asyncio
import contextlib
import heapq
import inspect
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from ..faults import Faults
from .envelopes import Event, blob_created, run_completed, run_status_changed, timestamp
from .retries import RETRY_SECONDS, after_attempt, in_words
from .store import Delivery, EventStore
from .subscriptions import Schema, Subscription
from .webhooks import HandshakeError, Webhooks

__all__ = ["Event", "EventGrid", "HandshakeError", "blob_created", "run_completed", "run_status_changed"]

log = logging.getLogger(__name__)

DeadLetter = Path | Callable[[Event], Awaitable[None] | None]

CONCURRENT_DELIVERIES = 8
HANDSHAKE_PAUSE_SECONDS = 0.2


class EventGrid:
    """Takes events, keeps them in SQLite until each subscriber has them, and survives restarts.

    It delivers from the first ``subscribe`` on. ``time_scale`` multiplies the waits between attempts (0.01 makes
    10 s into 0.1 s); the delays of ``faults`` are as they were asked for.
    """

    def __init__(self, database: Path, faults: Faults, time_scale: float = 1.0) -> None:
        self._faults = faults
        self._time_scale = time_scale
        self._store = EventStore(database)
        self._webhooks = Webhooks(faults)
        saved = self._store.subscriptions()
        self._subscriptions: dict[str, Subscription] = {subscription.name: subscription for subscription, _ in saved}
        self._validated = {subscription.name for subscription, agreed in saved if agreed}
        self._dead_letters: dict[str, DeadLetter] = {}
        self._queue: list[tuple[float, int]] = self._store.waiting()
        self._changed = asyncio.Event()
        self._free = asyncio.Semaphore(CONCURRENT_DELIVERIES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._dispatcher: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop delivering; what is not done stays in the database for the next start."""
        running = [task for task in (self._dispatcher, *self._tasks) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._webhooks.close()
        self._store.close()

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
        self._store.save_subscription(new, name in self._validated)
        self._dispatcher = self._dispatcher or asyncio.create_task(self._dispatch())
        while not await self._webhooks.agree(new):
            await asyncio.sleep(HANDSHAKE_PAUSE_SECONDS)
        self._validated.add(name)
        self._store.save_subscription(new, True)
        self._changed.set()
        log.info("event=subscribed subscription=%s schema=%s", name, schema)

    def forget_others(self, names: set[str]) -> None:
        """Delete the saved subscriptions that are not among ``names``, with what waits for them."""
        for name in set(self._subscriptions) - names:
            del self._subscriptions[name]
            self._validated.discard(name)
            self._store.delete_subscription(name)
            log.info("event=unsubscribed subscription=%s", name)

    async def publish(self, topic: str, events: Iterable[Event]) -> None:
        """Queue ``events`` (Event Grid schema) for every subscription to ``topic`` that wants them; durable on return.

        ``topic`` is any name that publisher and subscriptions agree on; the envelopes carry their own.
        """
        now = time.time()
        deliveries = (
            (to.name, event, due)
            for event in events
            for to in self._subscriptions.values()
            if to.wants(topic, event)
            for due in self._faults.moments(to.name, event, now)
        )
        for entry in self._store.add(deliveries, now):
            heapq.heappush(self._queue, entry)
        self._changed.set()

    def pending(self) -> int:
        """How many deliveries are not done yet, those that wait for a retry included."""
        return self._store.pending()

    async def _dispatch(self) -> None:
        """Start what is due, earliest first, a few at a time."""
        while True:
            self._changed.clear()
            parked = []
            while self._queue and self._queue[0][0] <= time.time():
                await self._free.acquire()
                entry = heapq.heappop(self._queue)
                recipient = self._store.recipient(entry[1])
                if recipient not in self._validated:
                    self._free.release()
                    parked += [entry] if recipient else []
                    continue
                task = asyncio.create_task(self._attempt(entry[1]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            wait = min(self._queue[0][0] - time.time(), 30.0) if self._queue else None
            for entry in parked:
                heapq.heappush(self._queue, entry)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait)

    async def _attempt(self, id: int) -> None:
        """Try one delivery once, and settle it."""
        try:
            delivery = self._store.delivery(id)
            if delivery is None:  # its subscription was deleted
                return
            to, event = self._subscriptions[delivery.subscription], delivery.event
            outcome = await self._webhooks.deliver(to, event, delivery.attempts)
            log.info(
                "event=delivery subscription=%s id=%s try=%d outcome=%s",
                to.name, event["id"], delivery.attempts, outcome,
            )  # fmt: skip
            await self._settle(delivery, to, outcome)
        except Exception:  # the edge of the task: a broken dead-letter function must not lose the event
            log.exception("event=delivery row=%d outcome=broken", id)
            heapq.heappush(self._queue, (time.time() + self._time_scale * RETRY_SECONDS[0], id))
            self._changed.set()
        finally:
            self._free.release()

    async def _settle(self, delivery: Delivery, to: Subscription, outcome: int | str) -> None:
        now = time.time()
        attempts = delivery.attempts + 1
        age = (now - delivery.published) / self._time_scale
        follows = after_attempt(outcome, attempts, age, to.max_delivery_attempts)
        if isinstance(follows, int | float):
            due = now + follows * self._time_scale
            self._store.postpone(delivery.id, attempts, due)
            heapq.heappush(self._queue, (due, delivery.id))
            self._changed.set()
            return
        if follows is not None:
            await self._bury(delivery, to, follows, outcome)
        self._store.remove(delivery.id)

    async def _bury(self, delivery: Delivery, to: Subscription, reason: str, outcome: int | str) -> None:
        log.warning("event=dead-letter subscription=%s id=%s reason=%s", to.name, delivery.event["id"], reason)
        letter = {
            **delivery.event,
            "deadLetterReason": reason,
            "deliveryAttempts": delivery.attempts + 1,
            "lastDeliveryOutcome": in_words(outcome),
            "publishTime": timestamp(delivery.published),
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
