"""The runs queue of a schedule: messages that are due at a time of its clock, come twice, or get lost."""

import base64
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

MAX_DEQUEUE = 5  # host.json
RETRY_IN = timedelta(seconds=10)  # host.json's visibilityTimeout, after an invocation that raised
LEASE = timedelta(minutes=10)  # after which a message of a host that was killed is visible again


@dataclass
class Message:
    """As the Functions host knows it."""

    number: int
    text: str
    sent: datetime
    due: datetime
    dequeued: int = 0
    taken: bool = False

    @property
    def run(self) -> str:
        return str(json.loads(self.text).get("run_id"))

    def get_body(self) -> bytes:
        return self.text.encode()

    def __getattr__(self, name: str) -> Any:
        """Whatever else azure.functions.QueueMessage has: ``id``, ``dequeue_count``, ``insertion_time`` …"""
        known = {"id": str(self.number), "dequeue_count": self.dequeued, "insertion_time": self.sent}
        if name in known:
            return known[name]
        raise AttributeError(name)


@dataclass
class Queue:
    """Stands for ``azure_clients.runs_queue()``. ``meddle`` is called with each message before it is put in."""

    now: Callable[[], datetime]
    meddle: Callable[[Message, "Queue"], bool]
    messages: list[Message] = field(default_factory=list)
    poison: list[Message] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def send_message(self, text: str, visibility_timeout: int = 0, time_to_live: int | None = None) -> None:
        assert time_to_live == -1, "a message that can expire is one that can be lost"
        assert 0 <= visibility_timeout <= 7 * 24 * 3600
        at = self.now()
        message = Message(next(self._numbers), text, at, at + timedelta(seconds=visibility_timeout))
        if self.meddle(message, self):
            self.messages.append(message)

    def again(self, message: Message, later: timedelta) -> None:
        """The same message, delivered once more: queues promise at least once."""
        self.messages.append(Message(next(self._numbers), message.text, message.sent, message.due + later))

    def peek_messages(self, max_messages: int = 1) -> list[Any]:
        visible = sorted((each for each in self.messages if not each.taken and each.due <= self.now()), key=_order)
        return [
            SimpleNamespace(
                content=base64.b64encode(each.text.encode()).decode(),
                inserted_on=each.sent,
                dequeue_count=each.dequeued,
            )
            for each in visible[:max_messages]
        ]

    def next(self) -> Message | None:
        """The message that is due first, and is not being worked on."""
        free = [each for each in self.messages if not each.taken]
        return min(free, key=_order, default=None)

    def failed(self, message: Message) -> None:
        """Its invocation raised."""
        if message.dequeued < MAX_DEQUEUE:
            message.due, message.taken = self.now() + RETRY_IN, False
            return
        self.messages.remove(message)
        self.poison.append(Message(next(self._numbers), message.text, self.now(), self.now()))

    def abandoned(self, message: Message) -> None:
        """Its host was killed."""
        message.due, message.taken = self.now() + LEASE, False


def _order(message: Message) -> tuple[datetime, int]:
    return message.due, message.number
