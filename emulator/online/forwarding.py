"""The way of one request to a deployment and back: limits, time-outs, streaming, Azure's headers."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from yarl import URL

from ..durations import seconds
from ..store import Json, Resource
from .instances import Instance
from .servers import NotServing, Server, TooManyRequests

if TYPE_CHECKING:
    from ..control import Control

log = logging.getLogger("emulator.forwarding")
# Azure's defaults for requestSettings, which the service shows for a deployment that names none.
REQUEST_SETTINGS = {"maxConcurrentRequestsPerInstance": 1, "requestTimeout": "PT5S", "maxQueueWait": "PT0S"}
HOP_BY_HOP = {
    "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "authorization", "date",
    "server", "x-request-id", "expect",  # what "Expect" asks for, this server has answered already
}  # fmt: skip
OWN_HEADERS = {
    "azureml-model-deployment", "azureml-model-session", "ms-azureml-model-error-statuscode",
    "ms-azureml-model-error-reason",
}  # fmt: skip


class InferenceError(Exception):
    """What the endpoint itself answers, without the model."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = JSONResponse({"error": {"message": message, "code": status}}, status, headers)


@dataclass(frozen=True)
class Message:
    """A request as the container gets it."""

    method: str
    target: str  # path and query
    headers: dict[str, str]
    body: bytes


class Relay(StreamingResponse):
    """The container's answer. ``end`` is called when it is over, also when the client left before it began."""

    def __init__(
        self, body: AsyncIterator[bytes], status: int, headers: dict[str, str], end: Callable[[], None]
    ) -> None:
        super().__init__(body, status, headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


class Forwarder:
    """Sends requests to the instances of deployments. Nothing is retried, and no lock is held meanwhile."""

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._session: aiohttp.ClientSession | None = None

    async def forward(self, request: Request, deployment: Resource, path: str) -> Response:
        """Answer ``request`` with what the deployment answers at ``path``. Raises InferenceError."""
        try:
            message = await read(request, path)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        exchange = asyncio.create_task(self.open(message, deployment))
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait([exchange, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not exchange.done():  # the client went away, or this server stops
                exchange.cancel()
                await asyncio.wait([exchange])
        if exchange.cancelled():
            return Response(status_code=499)  # nobody reads it
        server, instance, upstream = exchange.result()
        return self._answer(message, deployment, server, instance, upstream)

    async def open(self, message: Message, deployment: Resource) -> tuple[Server, Instance, aiohttp.ClientResponse]:
        """The instance that took the request, and its answer's beginning. Raises InferenceError."""
        settings = {**REQUEST_SETTINGS, **(deployment.properties.get("requestSettings") or {})}
        timeout = seconds(settings["requestTimeout"])
        deadline = time.monotonic() + timeout
        server, instance = await self._admit(deployment, settings, timeout)
        server.longest = max(server.longest, timeout)  # an update may shorten it while this request runs
        try:
            return server, instance, await self._send(message, instance, max(deadline - time.monotonic(), 0.001))
        except BaseException as error:
            server.release(instance)
            if isinstance(error, TimeoutError):
                raise InferenceError(
                    408, f"The model did not answer within {timeout:g} s (request_timeout_ms of the deployment)."
                ) from None
            if isinstance(error, aiohttp.ClientError):
                raise _unavailable(deployment, f"it does not answer ({type(error).__name__})") from None
            raise

    async def _admit(self, deployment: Resource, settings: Json, timeout: float) -> tuple[Server, Instance]:
        """A place with one of the deployment's instances; of the next server, when this one is replaced meanwhile."""
        places = int(settings["maxConcurrentRequestsPerInstance"])
        queue_wait = seconds(settings["maxQueueWait"])
        tried: Server | None = None
        while True:
            server = self._control.deployments.server(deployment.id)
            if server is None or server is tried:
                raise _unavailable(deployment, "it is not serving at the moment")
            try:
                # Guess: a maxQueueWait of 0, which the service shows, lets a request wait until its request timeout
                return server, await server.take(places, queue_wait or timeout)
            except NotServing:
                tried = server
            except (TooManyRequests, TimeoutError) as error:
                if isinstance(error, TimeoutError) and not queue_wait:
                    raise InferenceError(408, f"The request waited {timeout:g} s for a free place.") from None
                raise InferenceError(
                    429, "Too many pending requests: the deployment works on as many as it may.", {"Retry-After": "1"}
                ) from None

    async def _send(self, message: Message, instance: Instance, timeout: float) -> aiohttp.ClientResponse:
        if self._session is None:
            # A connection each: a kept one may be one that the container closes at this moment, and nothing is retried.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, skip_auto_headers=["Accept-Encoding", "User-Agent"]
            )
        call = self._session.request(
            message.method,
            URL(instance.address + message.target, encoded=True),
            data=message.body or None,
            headers=message.headers,
            timeout=aiohttp.ClientTimeout(total=timeout),
            allow_redirects=False,
        )
        return await asyncio.wait_for(call, timeout)

    def _answer(
        self,
        message: Message,
        deployment: Resource,
        server: Server,
        instance: Instance,
        upstream: aiohttp.ClientResponse,
    ) -> Response:
        headers = {
            "azureml-model-deployment": deployment.name,
            "azureml-model-session": deployment.name,
            "x-request-id": message.headers["x-request-id"],
        }
        status = upstream.status
        if status >= 300:
            # Azure answers 424 for whatever the container refused, and tells its status in a header.
            headers["ms-azureml-model-error-statuscode"] = str(status)
            headers["ms-azureml-model-error-reason"] = "model_error"  # Guess: "model_error" stands for every refusal
            status = 424

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in upstream.content.iter_any():
                    yield chunk
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("inference deployment=%s broke_off=%s", deployment.name, type(error).__name__)
                raise

        def end() -> None:
            upstream.close()
            server.release(instance)

        answer = Relay(body(), status, headers, end)
        left_out = {*HOP_BY_HOP, *OWN_HEADERS}
        # As they were sent, repeated ones and those outside Latin-1 too, which a str would not bring back.
        passed_on = [(k.lower(), v) for k, v in upstream.raw_headers if k.decode("latin-1").lower() not in left_out]
        answer.raw_headers = [*passed_on, *answer.raw_headers]
        return answer

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


async def read(request: Request, path: str) -> Message:
    """The client's request, without what concerns only its connection to the endpoint."""
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {k: v for k, v in request.headers.items() if k.lower() not in {*HOP_BY_HOP, "content-length"}}
    headers["x-request-id"] = request.headers.get("x-request-id") or str(uuid4())
    return Message(request.method, f"/{path.lstrip('/')}{query}", headers, await request.body())


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unavailable(deployment: Resource, why: str) -> InferenceError:
    return InferenceError(503, f"The deployment {deployment.name} cannot take requests: {why}.", {"Retry-After": "1"})
