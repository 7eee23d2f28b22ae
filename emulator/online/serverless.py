"""Serverless endpoints really answer: a server of emulator.yaml on the endpoint's model, behind its keys."""

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import processes
from ..arm.errors import ArmError
from ..config import ConfigError, Serving
from ..images import ImageError, installed
from ..storage import DATASTORES, Location
from ..store import Json, Resource
from .authentication import authorize

if TYPE_CHECKING:
    from ..control import Control

log = logging.getLogger("emulator.serverless")
# Guess: how long a request to a serverless endpoint may take and wait; the service limits tokens and requests a minute
REQUEST_TIMEOUT, QUEUE_WAIT = "PT5M", "PT30S"
STATES = ("Creating", "Updating", "Succeeded")  # of endpoints that the next emulator serves again
CHAT = ("chat/completions", "v1/chat/completions")  # both are the service's; older and newer clients differ
PASSED_ON = ("v1/models", "health")


class Serverless:
    """``/serverless/<endpoint>/…`` here is ``https://<endpoint>.<region>.models.ai.azure.com/…`` in Azure.

    What serves is a deployment of its own below the endpoint, which the service does not show.
    """

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: Request) -> Response:
        endpoint = self._control.store.get(self._collection + request.path_params["endpoint"])
        if endpoint is None:
            return _error(404, "NotFound", "There is no such serverless endpoint.")
        try:
            authorize(endpoint, request.headers.get("authorization"), self._control.authority)
        except PermissionError:
            # Guess: the body of a serverless endpoint's 401
            return _error(401, "Unauthorized", "The key is missing or wrong: send it as Authorization: Bearer <key>.")
        deployment = self._control.store.get(_deployment_id(endpoint.id))
        if deployment is None:
            return _error(503, "ServiceUnavailable", f"The endpoint is {endpoint.properties['provisioningState']}.")
        path = request.path_params["path"].strip("/")
        if path not in (*CHAT, *PASSED_ON):
            return _error(404, "NotFound", f"There is no /{path} here; chat is at /v1/chat/completions.")
        target = self._serving.chat if path in CHAT else f"/{path}"
        response = await self._control.inference.forward(request, deployment, target)
        if status := response.headers.get("ms-azureml-model-error-statuscode"):
            response.status_code = int(status)  # a managed online endpoint would hide it behind a 424
        return response

    async def bring_up(self, id: str) -> None:
        """Serve the endpoint's model. Raises ArmError when it cannot be; the endpoint is then Failed."""
        try:
            await self._prepare(self._endpoint(id))
            await self._control.deployments.bring_up(_deployment_id(id))
        except ArmError:
            self._set_state(id, "Failed")
            raise
        except (ImageError, ConfigError) as error:
            self._set_state(id, "Failed")
            raise ArmError(400, "UserError", str(error), "ResourceNotReady") from None
        except Exception:
            self._set_state(id, "Failed")  # else nobody could ever delete it
            raise
        self._set_state(id, "Succeeded")

    async def remove(self, id: str) -> None:
        self._set_state(id, "Deleting")
        await self._control.deployments.remove(_deployment_id(id))
        self._control.store.delete(id)

    def resume(self) -> None:
        """Serve again what served, and finish what was begun, before the local Azure was stopped."""
        for endpoint in self._control.store.select(self._collection.rstrip("/")):
            deployment = self._control.store.get(_deployment_id(endpoint.id))
            for identity in deployment.internal.get("processes", []) if deployment else []:
                processes.kill_leftover(identity)
            if endpoint.properties["provisioningState"] == "Deleting":
                self._background(self.remove(endpoint.id))
            elif endpoint.properties["provisioningState"] in STATES:
                self._background(self._bring_up_again(endpoint.id))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _bring_up_again(self, id: str) -> None:
        try:
            await self.bring_up(id)
        except ArmError as error:
            log.error("serverless endpoint=%s state=Failed reason=%s", id.rpartition("/")[2], error.message)

    def _background(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _collection(self) -> str:
        return f"{self._control.home.project.workspace_id}/serverlessEndpoints/"

    @property
    def _serving(self) -> Serving:
        serving = self._control.home.project.serverless
        if serving is None:
            raise ConfigError("emulator.yaml names nothing that serves serverless endpoints: add 'serverless'.")
        return serving

    async def _prepare(self, endpoint: Resource) -> None:
        """Put in place what a deployment has: a build context, an environment, a model."""
        serving, project = self._serving, self._control.home.project
        place = Location(DATASTORES["workspaceblobstore"], f"serverless/{endpoint.name}")
        await self._control.storage.upload(project.root / serving.context, place.join("context"))
        routes = {"livenessRoute": serving.liveness, "readinessRoute": serving.readiness, "scoringRoute": serving.chat}
        environment = {
            "build": {"contextUri": self._control.storage.address(place.join("context"))},
            "inferenceConfig": {name: {"path": path, "port": 5001} for name, path in routes.items()},
        }
        environment_id = f"{endpoint.id}/environments/serving"
        self._control.store.put(environment_id, {"properties": environment})
        model = endpoint.internal.get("model") or await self._stand_in(endpoint, serving, place.join("model"))
        deployment_id = _deployment_id(endpoint.id)
        if self._control.store.get(deployment_id) is None:
            properties = {"provisioningState": "Creating"}
            self._control.store.put(deployment_id, {"properties": properties, "sku": {"capacity": 1}})
        deployment = self._control.store.get(deployment_id)
        assert deployment is not None  # noqa: S101 - it was just written
        deployment.properties.update(
            model=model,
            environmentId=environment_id,
            environmentVariables={"MODEL_NAME": endpoint.name},
            requestSettings={
                "maxConcurrentRequestsPerInstance": serving.requests,
                "requestTimeout": REQUEST_TIMEOUT,
                "maxQueueWait": QUEUE_WAIT,
            },
        )
        self._control.store.save(deployment)

    async def _stand_in(self, endpoint: Resource, serving: Serving, place: Location) -> str:
        """The id of a model that stands for a foundation model nobody has tuned: its stand-in, exported as it is."""
        id = f"{endpoint.id}/models/base/versions/1"
        if self._control.store.get(id) is not None:
            return id
        project, base = self._control.home.project, str(endpoint.internal["base"])
        work = self._control.home.folder("serverless", endpoint.name)
        folder, log_file = work / "model", work / "export.log"
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        command = [word.replace("{base}", base).replace("{folder}", str(folder)) for word in serving.export]
        environment = processes.base_environment(installed(project, serving.python))
        export = await processes.start(command, project.root, environment, log_file)
        try:
            await export.wait()
        finally:
            await processes.stop(export)
        if export.returncode != 0:
            raise ArmError(
                400, "UserError", f"The base model {base} could not be exported: {processes.tail(log_file)}", "NotReady"
            )
        await self._control.storage.upload(folder, place)
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        properties = {"modelUri": self._control.storage.address(place), "modelType": "mlflow_model"}
        self._control.store.put(id, {"properties": properties})
        return id

    def _endpoint(self, id: str) -> Resource:
        endpoint = self._control.store.get(id)
        if endpoint is None:
            raise ArmError(404, "UserError", f"The endpoint {id.rpartition('/')[2]} was deleted.", "NotFound")
        return endpoint

    def _set_state(self, id: str, state: str) -> None:
        endpoint = self._control.store.get(id)
        if endpoint is not None:
            endpoint.properties["provisioningState"] = state
            endpoint.properties["endpointState"] = ENDPOINT_STATES[state]
            self._control.store.save(endpoint)


ENDPOINT_STATES = {"Succeeded": "Online", "Failed": "CreationFailed", "Deleting": "Deleting"}


def _deployment_id(endpoint: str) -> str:
    return f"{endpoint}/deployments/default"


def _error(status: int, code: str, message: str) -> Response:
    error: Json = {"code": code, "message": message}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse({"error": error}, status, headers)
