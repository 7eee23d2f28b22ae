"""Custom topics: where a program publishes events of its own, with azure-eventgrid or any other client."""

import json
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .envelopes import Event

if TYPE_CHECKING:
    from ..control import Control

log = logging.getLogger("emulator.topics")

AUDIENCES = ("https://eventgrid.azure.net",)
API_VERSION = "2018-01-01"
MAX_BODY = 1024 * 1024  # bytes; the service's documented limit for a request
TEXTS = {"id", "subject", "eventType", "eventTime"}  # required, and not empty
STAMPED = {"topic", "dataVersion", "metadataVersion"}  # by the service, where the publisher leaves them out
FIELDS = TEXTS | STAMPED | {"data"}


class TopicError(Exception):
    """An answer other than success, in the service's shape (recorded for 400)."""

    def __init__(self, status: int, code: str, message: str, inner: str = "") -> None:
        super().__init__(message)
        details = [{"code": inner or code, "message": message}]
        self.response = JSONResponse({"error": {"code": code, "message": message, "details": details}}, status)


class Topics:
    """``/eventgrid/<topic>/api/events`` here is ``https://<topic>.<region>-1.eventgrid.azure.net/api/events``."""

    def __init__(self, control: "Control") -> None:
        self._control = control

    async def answer(self, request: Request) -> Response:
        """Take a batch of events in Event Grid's schema; 200 once all of them are kept."""
        name = request.path_params["topic"]
        try:
            if name not in self._control.home.project.topics:
                raise TopicError(404, "NotFound", f"There is no topic {name}; emulator.yaml lists them (topics).")
            self._authorize(request)
            # Guess: a version that the service does not know is refused with a 400.
            if request.query_params.get("api-version") != API_VERSION:
                raise TopicError(400, "BadRequest", f"The query parameter api-version must be {API_VERSION}.")
            events = [self._stamped(name, event) for event in await _batch(request)]
        except TopicError as error:
            log.info("topic name=%s refused: %s", name, error)
            return error.response
        await self._control.events.publish(name, events)
        log.info("topic name=%s events=%d", name, len(events))
        return Response(status_code=200)

    def _authorize(self, request: Request) -> None:
        try:
            self._control.authority.verify(request.headers.get("authorization"), AUDIENCES)
        except PermissionError as error:
            # Guess: the words of a topic's 401. Its keys (aeg-sas-key) are not modelled: there are none.
            raise TopicError(401, "Unauthorized", str(error)) from None

    def _stamped(self, name: str, event: Any) -> Event:
        """The event as its subscribers get it. Raises TopicError for one that is not in the topic's schema."""
        if not isinstance(event, dict):
            raise _mismatch("Token Expected: StartObject")
        if unknown := sorted(event.keys() - FIELDS):
            raise _mismatch(f"Received unexpected property '{unknown[0]}' in JSON")
        if missing := sorted(field for field in TEXTS if not event.get(field) or not isinstance(event[field], str)):
            raise _mismatch(f"The property '{missing[0]}' is missing, or no text")
        if "data" not in event:
            raise _mismatch("The property 'data' is missing")
        try:
            datetime.fromisoformat(event["eventTime"])
        except ValueError:
            raise _mismatch("The property 'eventTime' is no time in ISO 8601") from None
        topic = self._topic_id(name)
        if event.get("topic") not in (None, "", topic) or event.get("metadataVersion") not in (None, "", "1"):
            raise _mismatch("'topic' and 'metadataVersion' must be left out, or be those of this topic")
        return {**event, "topic": topic, "dataVersion": event.get("dataVersion") or "", "metadataVersion": "1"}

    def _topic_id(self, name: str) -> str:
        project = self._control.home.project
        group = f"/subscriptions/{project.subscription}/resourceGroups/{project.resource_group}"
        return f"{group}/providers/Microsoft.EventGrid/topics/{name}"


async def _batch(request: Request) -> list[Any]:
    body = await request.body()
    if len(body) > MAX_BODY:
        raise TopicError(413, "RequestEntityTooLarge", f"The maximum size of a request is {MAX_BODY} bytes.")
    try:
        events = json.loads(body)
    except ValueError:
        raise _mismatch("It is not valid JSON") from None
    if not isinstance(events, list):
        raise _mismatch("Token Expected: StartArray, Actual Token Received: StartObject")
    return events


def _mismatch(what: str) -> TopicError:
    message = f"This resource is configured to receive event in 'EventGridEvent' schema. {what}."
    return TopicError(400, "BadRequest", message, "InputJsonInvalid")
