"""The data plane of online endpoints: who may call, which deployment answers, and which one gets a copy."""

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..store import Json, Resource
from .authentication import authorize
from .forwarding import Forwarder, InferenceError, Message, read

if TYPE_CHECKING:
    from ..control import Control

log = logging.getLogger("emulator.inference")
MIRRORED_AT_ONCE = 16  # copies under way; more are dropped, since nobody waits for them


class Inference:
    """``/inference/<endpoint>/…`` here is ``https://<endpoint>.<region>.inference.ml.azure.com/…`` in Azure."""

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._forwarder = Forwarder(control)
        self._copies: set[asyncio.Task[None]] = set()

    async def answer(self, request: Request) -> Response:
        try:
            endpoint = self._endpoint(request.path_params["endpoint"])
            self._authorize(endpoint, request)
            wanted = request.headers.get("azureml-model-deployment")
            deployment = self._deployment(endpoint, wanted or self._by_traffic(endpoint))
            path = _below_endpoint(request)
            if wanted is None:
                await self._mirror(endpoint, request, path)
            return await self.forward(request, deployment, path)
        except InferenceError as error:
            return error.response
        except ClientDisconnect:
            return Response(status_code=499)  # it went away while it was sending; nobody reads this

    async def forward(self, request: Request, deployment: Resource, path: str) -> Response:
        """Answer with what ``deployment`` answers at ``path``, whatever kind of endpoint it belongs to."""
        try:
            return await self._forwarder.forward(request, deployment, path)
        except InferenceError as error:
            return error.response

    async def close(self) -> None:
        for copy in list(self._copies):
            copy.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)
        await self._forwarder.close()

    def _endpoint(self, name: str) -> Resource:
        endpoint = self._control.store.get(f"{self._control.home.project.workspace_id}/onlineEndpoints/{name}")
        if endpoint is None:
            raise InferenceError(404, f"The endpoint {name} does not exist.")
        return endpoint

    def _authorize(self, endpoint: Resource, request: Request) -> None:
        try:
            authorize(endpoint, request.headers.get("authorization"), self._control.authority)
        except PermissionError as error:
            raise InferenceError(401, str(error), {"WWW-Authenticate": "Bearer"}) from None

    def _by_traffic(self, endpoint: Resource) -> str:
        """A deployment by the traffic's weights."""
        shares = _shares(endpoint.properties.get("traffic"))
        if not shares:
            raise InferenceError(404, f"The endpoint {endpoint.name} has no valid deployment with positive weight.")
        return random.choices(list(shares), list(shares.values()))[0]  # noqa: S311 - load balancing

    def _deployment(self, endpoint: Resource, name: str) -> Resource:
        deployment = self._control.store.get(f"{endpoint.id}/deployments/{name}")
        if deployment is None:
            raise InferenceError(404, f"The endpoint {endpoint.name} has no deployment {name}.")
        return deployment

    async def _mirror(self, endpoint: Resource, request: Request, path: str) -> None:
        """Send a copy to the mirror deployment, for its share of the requests; nobody waits for the answer."""
        for name, share in _shares(endpoint.properties.get("mirrorTraffic")).items():
            if random.random() * 100 >= share or len(self._copies) >= MIRRORED_AT_ONCE:  # noqa: S311 - a sample
                continue
            deployment = self._control.store.get(f"{endpoint.id}/deployments/{name}")
            if deployment is not None:
                copy = asyncio.create_task(self._send_copy(await read(request, path), deployment))
                self._copies.add(copy)
                copy.add_done_callback(self._copies.discard)

    async def _send_copy(self, message: Message, deployment: Resource) -> None:
        try:
            server, instance, answer = await self._forwarder.open(message, deployment)
        except InferenceError as error:
            log.info("mirror deployment=%s failed: %s", deployment.name, error)
            return
        try:
            async for _ in answer.content.iter_any():
                pass
        except Exception as error:
            log.info("mirror deployment=%s broke_off=%s", deployment.name, type(error).__name__)
        finally:
            answer.close()
            server.release(instance)


def _below_endpoint(request: Request) -> str:
    """The path at the container as it was sent: %2F in it is no slash."""
    parts: list[str] = request.scope["raw_path"].decode("ascii").split("/", 3)
    if len(parts) < 4:  # a %2F stands where /inference/<endpoint>/ has its slashes
        raise InferenceError(404, "There is no such endpoint.")
    return parts[3]


def _shares(traffic: Json | None) -> dict[str, int]:
    return {name: int(share) for name, share in (traffic or {}).items() if int(share)}
