"""Faults on request: a call, an event or its delivery goes wrong, as often and as likely as was asked for.

They live in this process's memory only: a restart of the control process clears them. Azurite and MLflow are real
programs that nothing here stands before; their fault is to be killed, and the supervisor starts them again.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .arm.errors import ArmError
from .events.envelopes import Event
from .store import Json

log = logging.getLogger("emulator.faults")

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=600)]
Share = Annotated[float, Meta(gt=0, le=1)]
Status = Annotated[int, Meta(ge=300, le=599)]
MESSAGE = "A fault that was asked for at /_emulator/faults."


class FaultError(ValueError):
    """What was asked for is no fault; the message says why."""


class Fault(Struct, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all kinds have: how often it strikes (``times``; None: until it is cleared) and how likely.

    The same ``seed`` gives the same decisions for the same sequence of matches.
    """

    times: Count | None = None
    probability: Share = 1.0
    seed: int = msgspec.field(default_factory=lambda: random.randrange(2**32))  # noqa: S311 - shown, for a replay


class AnswerFault(Fault):
    """An answer that is late, lost (``drop``: the connection breaks) or another one (``status``).

    ``when`` "before" keeps the call from taking effect; "after" lets it take effect and spoils only the answer.
    """

    status: Status | None = None
    drop: bool = False
    latency: Seconds = 0
    when: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if self.status is not None and self.drop:
            raise ValueError("Give status or drop, not both: a broken connection has no status")
        if self.status is None and not self.drop and not self.latency:
            raise ValueError("Give status, drop or latency: else nothing goes wrong")


class RequestFault(AnswerFault, tag="request"):
    """Of calls to Resource Manager, run history, the endpoints' data plane and the identity endpoint.

    ``method`` and ``path`` are shell patterns, compared without case; ``*`` matches slashes too. ``body`` replaces the
    error in Azure's shape; ``retry_after`` (seconds) becomes the header.
    """

    method: str = "*"
    path: str = "*"
    body: dict[str, Any] | None = None
    retry_after: Annotated[int, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.status is None and (self.body is not None or self.retry_after is not None):
            raise ValueError("body and retry_after belong to an answer: give its status")

    def wants(self, method: str, path: str) -> bool:
        return _like(method, self.method) and _like(path, self.path)

    def response(self, path: str) -> Response:
        """The answer, in the shape that the service behind ``path`` gives to its errors."""
        status = self.status or HTTPStatus.INTERNAL_SERVER_ERROR
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.body is not None:
            return JSONResponse(self.body, status, headers)
        if path.lower().startswith("/inference/"):
            return JSONResponse({"error": {"message": MESSAGE, "code": status}}, status, headers)
        if path.lower().startswith("/msi/"):
            return JSONResponse({"statusCode": status, "message": MESSAGE}, status, headers)
        return ArmError(status, _code(status), MESSAGE, headers=headers).response()


class WebhookFault(AnswerFault, tag="webhook"):
    """Of a delivery: what Event Grid sees of the webhook. ``drop`` is a connection that fails."""

    event_type: str = "*"
    subject: str = "*"
    subscription: str = "*"

    def wants(self, subscription: str, event: Event) -> bool:
        return _is_about(self, subscription, event)

    @property
    def outcome(self) -> int | str | None:
        return "ConnectionFailed" if self.drop else self.status


class EventFault(Fault, tag="event"):
    """Of an event on its way to a subscription: several ``copies``, a ``delay``, ``lost``, or ``reorder_within``.

    The last, in seconds, delivers each at a random moment within that time, so that later ones overtake earlier ones.
    """

    event_type: str = "*"
    subject: str = "*"
    subscription: str = "*"
    copies: Annotated[int, Meta(ge=1, le=100)] = 1
    delay: Seconds = 0
    reorder_within: Seconds = 0
    lost: bool = False

    def __post_init__(self) -> None:
        if self.copies == 1 and not (self.delay or self.reorder_within or self.lost):
            raise ValueError("Give copies, delay, reorder_within or lost: else nothing goes wrong")

    def wants(self, subscription: str, event: Event) -> bool:
        return _is_about(self, subscription, event)


Some = TypeVar("Some", RequestFault, WebhookFault, EventFault)


@dataclass
class Active:
    """A fault in force, and what it has done."""

    id: str
    fault: RequestFault | WebhookFault | EventFault
    chance: random.Random = field(init=False)
    hits: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.fault.seed)  # noqa: S311 - to be replayed, not to be unguessable

    def strikes(self) -> bool:
        """Whether it strikes this time; counts it."""
        if self.fault.times is not None and self.hits >= self.fault.times:
            return False
        if self.chance.random() >= self.fault.probability:
            return False
        self.hits += 1
        return True

    def shown(self) -> Json:
        return {"id": self.id, "hits": self.hits, **msgspec.to_builtins(self.fault)}


class Faults:
    """The faults in force. Of those that match, the newest that strikes does, and no other."""

    def __init__(self) -> None:
        self._active: dict[str, Active] = {}
        self._numbers = itertools.count(1)

    def add(self, wanted: Json) -> Json:
        """Put a fault in force (``kind`` is "request" unless it says so) and return it. Raises FaultError."""
        try:
            fault = msgspec.convert({"kind": "request", **wanted}, RequestFault | WebhookFault | EventFault)
        except msgspec.ValidationError as error:
            raise FaultError(f"This is no fault: {error}. See docs/emulator.md, Faults.") from None
        active = Active(str(next(self._numbers)), fault)
        self._active[active.id] = active
        return active.shown()

    def shown(self) -> list[Json]:
        """All of them, the used-up ones too, with how often each struck."""
        return [active.shown() for active in self._active.values()]

    def remove(self, id: str) -> Json | None:
        """Clear one and return it as it was; None when there is none with this id."""
        active = self._active.pop(id, None)
        return active.shown() if active else None

    def clear(self) -> None:
        self._active.clear()

    def request(self, method: str, path: str) -> RequestFault | None:
        """What goes wrong with this call. Never with the administration itself: a fault must be removable."""
        if path.startswith("/_emulator/"):
            return None
        found = self._striking(RequestFault, lambda fault: fault.wants(method, path))
        return next((fault for fault, _ in found), None)

    def webhook(self, subscription: str, event: Event) -> WebhookFault | None:
        """What goes wrong with this delivery."""
        found = self._striking(WebhookFault, lambda fault: fault.wants(subscription, event))
        return next((fault for fault, _ in found), None)

    def moments(self, subscription: str, event: Event, now: float) -> list[float]:
        """When to deliver this event to this subscription: once and at once, but for a fault."""
        for fault, chance in self._striking(EventFault, lambda fault: fault.wants(subscription, event)):
            if fault.lost:
                return []
            return [now + fault.delay + chance.uniform(0, fault.reorder_within) for _ in range(fault.copies)]
        return [now]

    def _striking(self, kind: type[Some], wants: Callable[[Some], bool]) -> Iterator[tuple[Some, random.Random]]:
        for active in reversed(self._active.values()):
            if isinstance(active.fault, kind) and wants(active.fault) and active.strikes():
                log.info("fault id=%s kind=%s hits=%d", active.id, kind.__struct_config__.tag, active.hits)
                yield active.fault, active.chance
                return


def faulty_connections(faults: Faults) -> type[H11Protocol]:
    """The connections of a uvicorn server (``Config(http=…)``) whose requests meet ``faults``."""

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.app = _Faulty(self.app, faults, transport.abort)

    return Connection


class _Faulty:
    """The application of one connection, with its faults. ``abort`` breaks the connection."""

    def __init__(self, app: ASGIApp, faults: Faults, abort: Callable[[], None]) -> None:
        self._app = app
        self._faults = faults
        self._abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._faults.request(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
        elif fault.status is None and not fault.drop:
            await self._delay(fault, scope, receive, send)
        else:
            await self._spoil(fault, scope, receive, send)

    async def _delay(self, fault: RequestFault, scope: Scope, receive: Receive, send: Send) -> None:
        async def late(message: Message) -> None:
            if message["type"] == "http.response.start":
                await asyncio.sleep(fault.latency)
            await send(message)

        if fault.when == "before":
            await asyncio.sleep(fault.latency)
        await self._app(scope, receive, late if fault.when == "after" else send)

    async def _spoil(self, fault: RequestFault, scope: Scope, receive: Receive, send: Send) -> None:
        async def nowhere(_: Message) -> None:
            return

        if fault.when == "after":
            await self._app(scope, receive, nowhere)
        else:  # the client may still be sending, and would take an early end for another error
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
        await asyncio.sleep(fault.latency)
        if not fault.drop:
            await fault.response(scope["path"])(scope, receive, send)
            return
        self._abort()
        while (await receive())["type"] != "http.disconnect":
            pass


def _is_about(fault: WebhookFault | EventFault, subscription: str, event: Event) -> bool:
    return (
        _like(subscription, fault.subscription)
        and _like(event["eventType"], fault.event_type)
        and _like(event["subject"], fault.subject)
    )


def _like(text: str, pattern: str) -> bool:
    return fnmatchcase(text.lower(), pattern.lower())


def _code(status: int) -> str:
    """Azure's usual code for a status: 503 is ServiceUnavailable."""
    try:
        return HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")
    except ValueError:
        return "Error"
