"""The Event Grid extension's webhook: handshake, batches, and the status codes that decide a resend."""

import asyncio
import json
from functools import partial
from typing import Any

from azure.functions.meta import Datum
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .invoke import Invoker, Outcome, decode
from .keys import Keys
from .loading import LoadedFunction

SYSTEM_KEY = "eventgrid_extension"


class EventGridWebhook:
    """Answers ``/runtime/webhooks/eventgrid?functionName=…&code=…`` for both event schemas."""

    def __init__(self, functions: list[LoadedFunction], keys: Keys, invoker: Invoker) -> None:
        self._functions = {function.name.lower(): function for function in functions}
        self._keys = keys
        self._invoker = invoker

    async def answer(self, request: Request, presented: str | None) -> Response:
        """Handshakes 200, a batch 202 once all of it ran or 500 if any failed, 401 and 404 before that."""
        if not self._keys.allow_system(SYSTEM_KEY, presented):
            return Response(status_code=401)
        name = request.query_params.get("functionName", "")
        function = self._functions.get(name.lower())
        if function is None:
            return PlainTextResponse(f"cannot find function: '{name}'", 404)
        if request.method == "OPTIONS":
            # The CloudEvents handshake: the origin asks whether it may send.
            origin = request.headers.get("WebHook-Request-Origin", "*")
            return Response(headers={"WebHook-Allowed-Origin": origin})
        kind = request.headers.get("aeg-event-type", "").lower()
        if kind == "unsubscribe":
            return Response(status_code=202)
        try:
            events = json.loads(await request.body())
            if kind == "subscriptionvalidation":
                return JSONResponse({"validationResponse": events[0]["data"]["validationCode"]})
        except (ValueError, LookupError, TypeError):
            # Guess: the real extension fails on a malformed body; 400 says that sending it again is no use.
            return Response(status_code=400)
        if kind != "notification" or request.method != "POST":
            return Response(status_code=400)
        batch = events if isinstance(events, list) else [events]
        outcomes = await asyncio.gather(*(self._deliver(function, event) for event in batch))
        return Response(status_code=202 if all(outcome.succeeded for outcome in outcomes) else 500)

    async def _deliver(self, function: LoadedFunction, event: Any) -> Outcome:
        text = json.dumps(event)
        return await self._invoker.call(function, partial(decode, function, Datum(text, "json"), {}))
