"""The host's HTTP side: HTTP functions, the admin API and the extension webhooks, as one ASGI application."""

import logging
import time
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qsl

from azure.functions.meta import Datum
from fastapi.encoders import jsonable_encoder
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from .host_settings import HostSettings
from .invoke import Invoker, decode
from .keys import AuthLevel, Keys
from .loading import LoadedApp, LoadedFunction
from .routes import Route, compile_route
from .signatures import converter
from .webhooks import EventGridWebhook

log = logging.getLogger(__name__)


class HttpHost:
    """Answers requests for one loaded app. Raises AppError when a route template is not understood."""

    def __init__(self, app: LoadedApp, settings: HostSettings, keys: Keys, invoker: Invoker) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._invoker = invoker
        self._started = time.monotonic()
        self._event_grid = EventGridWebhook(app.of_kind("eventGridTrigger"), keys, invoker)
        self._routes = sorted(
            (
                compile_route(settings.route_prefix, _template(at), at.trigger.get("methods"), at)
                for at in app.of_kind("httpTrigger")
            ),
            key=lambda route: route.precedence,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and write one access line, without the query string: it may hold a key."""
        started, status, complete = time.monotonic(), 0, False

        async def watched_send(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        response: Response | None = None
        try:
            response = await self._respond(Request(scope, receive))
            await response(scope, receive, watched_send)
        except ClientDisconnect:
            pass  # shows below as outcome=disconnected
        finally:
            await _close(response)
            log.info(
                "event=http method=%s path=%s status=%d outcome=%s ms=%.1f",
                scope["method"], scope["path"], status, "sent" if complete else "disconnected",
                (time.monotonic() - started) * 1000,
            )  # fmt: skip

    async def _respond(self, request: Request) -> Response:
        path = request.url.path
        presented = request.headers.get("x-functions-key") or request.query_params.get("code")
        for route in self._routes:
            parameters = route.match(request.method, path)
            if parameters is not None:
                return await self._call(route, request, parameters, presented)
        if path == "/runtime/webhooks/eventgrid":
            return await self._event_grid.answer(request, presented)
        if path.startswith("/admin/"):
            return self._admin(request, presented)
        if path == "/":
            return PlainTextResponse("The local Azure Functions host is running.\n")
        return Response(status_code=404)  # also for a method that no function takes, as the real router does

    async def _call(
        self, route: Route, request: Request, parameters: dict[str, str], presented: str | None
    ) -> Response:
        function: LoadedFunction = route.target
        level = cast(AuthLevel, str(function.trigger.get("authLevel", "function")).lower())
        if not self._keys.allow(level, presented):
            return Response(status_code=401)
        if self._app.http_streaming:
            request.scope["path_params"] = parameters
            outcome = await self._invoker.call(function, lambda: request, _streaming_response)
        else:
            datum = await _request_datum(request, parameters)
            outcome = await self._invoker.call(
                function, partial(decode, function, datum, {}), partial(_classic_response, function)
            )
        # An unhandled exception is a 500 with nothing in it: its text is for the log, not for the caller.
        return outcome.value if outcome.succeeded else Response(status_code=500)

    def _admin(self, request: Request, presented: str | None) -> Response:
        if not self._keys.allow("admin", presented):
            return Response(status_code=401)
        match request.method, request.url.path.rstrip("/"):
            case "GET", "/admin/host/status":
                uptime = int((time.monotonic() - self._started) * 1000)
                return JSONResponse(
                    {"id": "local", "state": "Running", "version": "4.0.0-local", "processUptime": uptime}
                )
            case "GET", "/admin/functions":
                return JSONResponse([self._description(at, request) for at in self._app.functions])
        return Response(status_code=404)

    def _description(self, function: LoadedFunction, request: Request) -> dict[str, Any]:
        base = f"{request.url.scheme}://{request.url.netloc}"
        route = f"{self._settings.route_prefix}/{_template(function)}".strip("/")
        return {
            "name": function.name,
            "href": f"{base}/admin/functions/{function.name}",
            "invoke_url_template": f"{base}/{route}" if function.kind == "httpTrigger" else None,
            "language": "python",
            "isDisabled": False,
            "config": {"name": function.name, "bindings": list(function.bindings)},
        }


def _template(function: LoadedFunction) -> str:
    return str(function.trigger.get("route", function.name)).strip("/")


async def _request_datum(request: Request, parameters: dict[str, str]) -> Datum:
    """The request as the host sends it to the worker for azure.functions.HttpRequest."""

    def strings(pairs: Any) -> dict[str, Datum]:
        return {name: Datum(value, "string") for name, value in pairs}

    query = parse_qsl(request.url.query, keep_blank_values=True)
    value = {
        "method": Datum(request.method, "string"),
        "url": Datum(str(request.url), "string"),
        "headers": strings(request.headers.items()),
        "query": strings(query),
        "params": strings(parameters.items()),
        "body": Datum(await request.body(), "bytes"),
    }
    return Datum(value, "http")


def _classic_response(function: LoadedFunction, value: Any) -> Response:
    """azure.functions.HttpResponse or str, through the worker's converter; else raises TypeError."""
    try:
        datum = converter("http").encode(value, expected_type=function.return_type)
    except NotImplementedError:
        found = type(value).__name__
        raise TypeError(f"function {function.name!r} returned {found}, not an HttpResponse") from None
    if datum.type == "string":
        return PlainTextResponse(datum.value)
    parts = datum.value
    response = Response(parts["body"].value, int(parts["status_code"].value))
    for name, header in parts["headers"].items():
        if name.lower() != "content-length":  # computed from the body
            response.headers[name] = header.value
    for cookie in parts["cookies"] or ():
        for morsel in cookie.values():
            response.headers.append("set-cookie", morsel.OutputString())
    return response


def _streaming_response(value: Any) -> Response:
    """What the FastAPI extension makes of a function's result. Raises TypeError for None, as Azure."""
    if isinstance(value, Response):
        return value
    if value is None:
        raise TypeError("an HTTP function returned None instead of a response")
    return JSONResponse(jsonable_encoder(value))


async def _close(response: Response | None) -> None:
    """Close the generator of a stream that ended early, now and not when it is collected."""
    close = getattr(getattr(response, "body_iterator", None), "aclose", None)
    if close is not None:
        await close()
