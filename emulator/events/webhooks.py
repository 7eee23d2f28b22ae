"""Event Grid's side of a webhook: the handshake that proves it wants events, and the delivery of one."""

import asyncio
import json
import uuid
from http import HTTPStatus

import aiohttp

from ..faults import Faults
from .envelopes import Event, cloud_event, validation_event
from .retries import SUCCESSES
from .subscriptions import Subscription

# How long Event Grid waits for an answer.
RESPONSE_SECONDS = 30


class HandshakeError(Exception):
    """The webhook answered, but refused the validation handshake; the message says how."""


class Webhooks:
    """The client of all webhooks."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._session: aiohttp.ClientSession | None = None

    @property
    def _http(self) -> aiohttp.ClientSession:
        """Made once there is an event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=RESPONSE_SECONDS))
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def agree(self, to: Subscription) -> bool:
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

    async def deliver(self, to: Subscription, event: Event, attempts: int) -> int | str:
        """POST one event, as a batch of one; the status of the answer, or a word when there was none."""
        try:
            async with asyncio.timeout(RESPONSE_SECONDS):
                fault = self._faults.webhook(to.name, event)
                if fault and fault.when == "before":
                    await asyncio.sleep(fault.latency)
                    if fault.outcome is not None:
                        return fault.outcome
                status = await self._post(to, event, attempts)
                if fault and fault.when == "after":
                    await asyncio.sleep(fault.latency)
                    return status if fault.outcome is None else fault.outcome
                return status
        except TimeoutError:
            return "TimedOut"
        except aiohttp.ClientError:
            return "ConnectionFailed"

    async def _post(self, to: Subscription, event: Event, attempts: int) -> int:
        body = json.dumps([event] if to.schema == "EventGridSchema" else cloud_event(event))
        headers = _headers(to, "Notification", event, attempts)
        async with self._http.post(to.endpoint_url, data=body, headers=headers) as response:
            return response.status


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
