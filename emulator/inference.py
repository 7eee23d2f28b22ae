"""The data plane of online endpoints: authentication, traffic by weight, limits, and the way to the process."""

import asyncio
import contextlib
import hmac
import logging
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .config import HOST
from .deployments import Server
from .durations import seconds
from .identity import ML_AUDIENCES
from .store import Resource

if TYPE_CHECKING:
    from .control import Control

log = logging.getLogger("emulator.inference")
# Azure's defaults for requestSettings.
MAX_CONCURRENT, MAX_QUEUE_WAIT, REQUEST_TIMEOUT = 1, 0.5, 5.0
HOP_BY_HOP = {
    "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length",
    "authorization", "content-encoding", "accept-encoding", "date", "server",
}  # fmt: skip


class InferenceError(Exception):
    """What the endpoint itself answers, without the model."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = JSONResponse({"error": {"message": message, "code": status}}, status, headers)


class Inference:
    """``/inference/<endpoint>/…`` here is ``https://<endpoint>.<region>.inference.ml.azure.com/…`` in Azure."""

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._session: aiohttp.ClientSession | None = None

    async def answer(self, request: Request) -> Response:
        try:
            endpoint = self._endpoint(request.path_params["endpoint"])
            self._authenticate(endpoint, request)
            deployment, server = self._choose(endpoint, request.headers.get("azureml-model-deployment"))
            return await self._forward(request, deployment, server)
        except InferenceError as error:
            return error.response

    def _endpoint(self, name: str) -> Resource:
        endpoint = self._control.store.get(f"{self._control.home.project.workspace_id}/onlineEndpoints/{name}")
        if endpoint is None:
            raise InferenceError(404, f"The endpoint {name} does not exist.")
        return endpoint

    def _authenticate(self, endpoint: Resource, request: Request) -> None:
        authorization = request.headers.get("authorization")
        if endpoint.properties["authMode"] == "Key":
            key = (authorization or "").removeprefix("Bearer ").encode()  # only bytes compare outside ASCII
            keys = (endpoint.internal["primaryKey"], endpoint.internal["secondaryKey"])
            if not sum(
                hmac.compare_digest(key, known.encode()) for known in keys
            ):  # compares both, whatever the first says
                raise InferenceError(401, "key_auth_access_denied: the key is missing or wrong.")
            return
        try:
            self._control.authority.verify(authorization, ML_AUDIENCES)
        except PermissionError as error:
            raise InferenceError(401, str(error)) from None

    def _choose(self, endpoint: Resource, wanted: str | None) -> tuple[Resource, Server]:
        """The deployment that the header names, else one by the traffic's weights."""
        if wanted is None:
            traffic = {
                name: int(share) for name, share in (endpoint.properties.get("traffic") or {}).items() if int(share)
            }
            if not traffic:
                raise InferenceError(404, f"No deployment of the endpoint {endpoint.name} gets traffic.")
            wanted = random.choices(list(traffic), list(traffic.values()))[0]  # noqa: S311 - load balancing
        deployment = self._control.store.get(f"{endpoint.id}/deployments/{wanted}")
        if deployment is None:
            raise InferenceError(404, f"The endpoint {endpoint.name} has no deployment {wanted}.")
        server = self._control.deployments.server(deployment.id)
        if server is None:
            raise InferenceError(503, f"The deployment {wanted} is not serving at the moment.", {"Retry-After": "1"})
        return deployment, server

    async def _forward(self, request: Request, deployment: Resource, server: Server) -> Response:
        settings = deployment.properties.get("requestSettings") or {}
        timeout = _setting(settings, "requestTimeout", REQUEST_TIMEOUT)
        await self._admit(settings, server)
        released = False

        async def release() -> None:
            nonlocal released
            if not released:
                released = True
                async with server.freed:
                    server.in_flight -= 1
                    server.freed.notify_all()

        try:
            upstream = await self._open(request, server, timeout)
        except BaseException:
            await release()
            raise
        headers = {k: v for k, v in upstream.headers.items() if k.lower() not in HOP_BY_HOP}
        headers["azureml-model-deployment"] = deployment.name
        status = upstream.status
        if status >= 300:
            # Azure answers 424 for whatever the container refused, and tells its status in a header.
            headers["ms-azureml-model-error-statuscode"] = str(status)
            status = 424

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in upstream.content.iter_any():
                    yield chunk
            except aiohttp.ClientError as error:
                log.warning("inference deployment=%s broke_off=%s", deployment.name, type(error).__name__)
                raise
            finally:
                upstream.close()
                await release()

        return StreamingResponse(body(), status, headers)

    async def _open(self, request: Request, server: Server, timeout: float) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        query = f"?{request.url.query}" if request.url.query else ""
        call = self._session.request(
            request.method,
            f"http://{HOST}:{server.port}/{request.path_params['path']}{query}",
            data=await request.body(),
            headers={k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP},
            timeout=aiohttp.ClientTimeout(total=timeout),
        )
        try:
            return await asyncio.wait_for(call, timeout)
        except TimeoutError:
            raise InferenceError(408, f"The model did not answer within {timeout:.0f} s (requestTimeout).") from None
        except aiohttp.ClientError as error:
            raise InferenceError(
                503, f"The deployment does not answer ({type(error).__name__}).", {"Retry-After": "1"}
            ) from None

    async def _admit(self, settings: dict[str, object], server: Server) -> None:
        """Wait for one of the deployment's places; 429 when none becomes free in time, as Azure answers."""
        places = int(str(settings.get("maxConcurrentRequestsPerInstance") or MAX_CONCURRENT))
        wait = _setting(settings, "maxQueueWait", MAX_QUEUE_WAIT)
        async with server.freed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.freed.wait_for(lambda: server.in_flight < places), wait)
            if server.in_flight >= places:
                raise InferenceError(429, "Too many requests: the deployment's queue is full.", {"Retry-After": "1"})
            server.in_flight += 1

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _setting(settings: dict[str, object], name: str, default: float) -> float:
    value = settings.get(name)
    return seconds(str(value)) if value else default
