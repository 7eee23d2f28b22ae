"""The control process: Resource Manager, the endpoints' data plane, identity and Event Grid in one event loop.

Run as: python -m emulator.control (the supervisor does)
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path

import uvicorn
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob.aio import BlobServiceClient
from azure.storage.queue.aio import QueueServiceClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .arm import (  # noqa: F401 - importing registers their routes
    assets,
    command_jobs,
    computes,
    datastores,
    deployments,
    endpoints,
    fine_tuning_jobs,
    mlflow_metrics,
    operation_status,
    pipeline_jobs,
    preemption,
    registries,
    routing,
    run_history,
    serverless_endpoints,
    workspaces,
)
from .arm import faults as fault_routes  # noqa: F401
from .arm import jobs as job_routes  # noqa: F401
from .config import ACCOUNT_KEY, BLOB_HOST, HOST, KEEP_ALIVE, EventSubscription, Home, State, load_project
from .environment import entra, urls
from .events import eventgrid
from .events.blobs import BlobWatcher
from .events.topics import Topics
from .faults import Faults, faulty_connections
from .identity import Authority, discovery_routes, identity_app
from .jobs.jobs import Jobs
from .online.deployments import Deployments
from .online.inference import Inference
from .online.serverless import Serverless
from .operations import Operations
from .proxy import Proxy
from .references import References
from .registry import Registry
from .storage import DATASTORES, Location, Storage
from .store import Resource, Store

log = logging.getLogger("emulator.control")


class Control:
    """Everything behind the control plane's routes."""

    def __init__(self, home: Home, state: State, event_copies: int = 1) -> None:
        self.home = home
        self.state = state
        self.urls = urls(state)
        self.store = Store(home.database)
        self.authority = Authority(home.path, home.project.tenant, state.principal_id)
        self.storage = Storage(self.urls["blob"])
        self.references = References(self)
        self.registry = Registry()
        self.operations = Operations(self)
        self.jobs = Jobs(self)
        self.deployments = Deployments(self)
        self.inference = Inference(self)
        self.serverless = Serverless(self)
        upstream = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or ""
        ours = upstream.rstrip("/") == self.urls["proxy"]  # `up` in a shell that has this local Azure's variables
        self.proxy = Proxy({BLOB_HOST: state.ports["blob"]}, "" if ours else upstream)
        self.faults = Faults()
        if event_copies > 1:
            self.faults.add({"kind": "event", "copies": event_copies})
        self.events = eventgrid.EventGrid(home.path / "events.db", self.faults)
        self.topics = Topics(self)
        self.ready = False
        self._background: set[asyncio.Task[None]] = set()

    def locate(self, uri: str) -> Location:
        """The blobs behind any URI that a client may give, those of a job's outputs included. Raises UriError."""
        return self.references.locate(uri)

    def publish_run_status(self, job: Resource) -> None:
        """Tell Event Grid of a job's new status, in the background: the job does not wait for its listeners."""
        status = str(job.properties["status"])
        project = self.home.project
        known = {
            "topic": project.workspace_id,
            "experiment_id": job.properties["experimentName"],
            "experiment_name": job.properties["experimentName"],
            "run_id": job.name,
            "run_tags": job.properties.get("tags") or {},
        }
        events = [eventgrid.run_status_changed(status=status, **known)]
        if status == "Completed":
            events.append(eventgrid.run_completed(**known))
        self._in_background(self.events.publish("workspace", events))

    async def prepare(self) -> None:
        """Put in place what infra/ would: workspace, datastores, containers, queues, event subscriptions."""
        workspaces.create_workspace(self)
        datastores.create_datastores(self)
        for name in [*self.home.project.containers, *DATASTORES.values()]:
            await self.storage.ensure_container(name)
        async with QueueServiceClient(self.urls["queue"], credential=ACCOUNT_KEY) as queues:
            for name in self.home.project.queues:
                with contextlib.suppress(ResourceExistsError):
                    await queues.create_queue(name)
        self.operations.fail_unfinished()
        self.jobs.resume()
        self.deployments.resume()
        self.serverless.resume()

    async def subscribe(self) -> None:
        """Create the event subscriptions; each waits for its webhook's answer, so the host may start later.

        Nobody waits for the webhooks of others.
        """
        rows = self.home.project.event_subscriptions
        self.events.forget_others({row.name for row in rows})
        for row in rows:
            if row.webhook:
                self._in_background(self._subscribe_other(row))
            else:
                await self._subscribe(row)

    async def _subscribe(self, row: EventSubscription) -> None:
        code = self.state.functions_keys["systemKeys"]["eventgrid_extension"]
        function = f"{self.urls['functions']}/runtime/webhooks/eventgrid?functionName={row.function}&code={code}"
        await self.events.subscribe(
            row.name,
            row.topic,
            row.webhook or function,
            row.event_types,
            subject_begins_with=row.subject_begins_with,
        )

    async def _subscribe_other(self, row: EventSubscription) -> None:
        try:
            await self._subscribe(row)
        except eventgrid.HandshakeError as error:
            log.error("subscription=%s %s", row.name, error)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        # At once: each gives its processes a grace, and the supervisor gives this process one for all.
        await asyncio.gather(
            self.operations.close(), self.jobs.close(), self.deployments.close(), self.serverless.close()
        )
        await self.inference.close()
        await self.proxy.close()
        for task in self._background:
            task.cancel()  # a webhook of others may still be waited for
        await self.events.close()
        await self.storage.close()
        self.store.close()


def control_app(control: Control) -> Starlette:
    """The TLS side: Entra's keys, ``/metadata``, ``/inference``, ``/eventgrid`` and everything of Resource Manager."""

    async def discovery(_: Request) -> Response:
        return JSONResponse(workspaces.discovery(control.urls["arm"]))

    async def health(_: Request) -> Response:
        return JSONResponse({"ready": control.ready}, 200 if control.ready else 503)

    async def resource_manager(request: Request) -> Response:
        return await routing.dispatch(control, request)

    methods = ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD"]
    return Starlette(
        routes=[
            *discovery_routes(control.authority, entra(control.home, control.state)),
            Route("/metadata/endpoints", _metadata(control)),
            Route("/discovery", discovery),
            Route("/_emulator/health", health),
            Route("/inference/{endpoint}/{path:path}", control.inference.answer, methods=methods),
            Route("/serverless/{endpoint}/{path:path}", control.serverless.answer, methods=methods),
            Route("/eventgrid/{topic}/api/events", control.topics.answer, methods=["POST"]),
            Route("/{path:path}", resource_manager, methods=methods),
        ]
    )


def _metadata(control: Control) -> Callable[[Request], Awaitable[Response]]:
    """The cloud's endpoints: over TLS, as in Azure, and without, for the function app (app_environment says why)."""

    async def metadata(_: Request) -> Response:
        return JSONResponse(workspaces.cloud_metadata(control.urls["arm"]))

    return metadata


class Server(uvicorn.Server):
    """A uvicorn server beside others in one loop: the signals belong to ``main``."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: Starlette, port: int, faults: Faults, certificates: Path | None = None) -> Server:
    config = uvicorn.Config(
        app,
        http=faulty_connections(faults),
        host=HOST,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        timeout_keep_alive=KEEP_ALIVE,
        ssl_certfile=str(certificates / "server.pem") if certificates else None,
        ssl_keyfile=str(certificates / "server.key") if certificates else None,
    )
    return Server(config)


async def serve(home: Home, state: State, event_copies: int = 1) -> None:
    """Run until SIGTERM or SIGINT."""
    control = Control(home, state, event_copies)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    identity = identity_app(control.authority, state.identity_header)
    identity.router.routes.append(Route("/metadata/endpoints", _metadata(control)))
    servers = [
        _server(identity, state.ports["identity"], control.faults),
        _server(control_app(control), state.ports["arm"], control.faults, home.path / "certificates"),
    ]
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    await control.proxy.start(state.ports["proxy"])
    await control.prepare()
    watcher = BlobWatcher(
        lambda: BlobServiceClient(control.urls["blob"], credential=ACCOUNT_KEY),
        containers=["datasets"],
        publish=lambda events: control.events.publish("storage", events),
        state=home.path / "blobs.db",
        log_path=home.logs / "azurite.log",
    )
    tasks.append(asyncio.create_task(_start_events(control, watcher)))
    # A handshake that is refused, or a watcher that fails, must be seen: the supervisor starts this process again.
    failed = asyncio.ensure_future(tasks[-1])
    failed.add_done_callback(lambda _: stopping.set())
    await stopping.wait()
    broken = failed.done() and not failed.cancelled() and failed.exception()
    if broken:
        log.error("events failed: %s", broken)
    await control.close()
    for server in servers:
        server.should_exit = True
    failed.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    log.info("control stopped")
    if broken:
        raise SystemExit(1)


async def _start_events(control: Control, watcher: BlobWatcher) -> None:
    await control.subscribe()
    control.ready = True
    await watcher.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, required=True, help="the path of emulator.yaml")
    parser.add_argument("--home", type=Path, required=True, help="the state folder")
    parser.add_argument("--event-copies", type=int, default=1, help="deliver each event so often (for tests)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("azure").setLevel(logging.WARNING)
    home = Home(load_project(arguments.project), arguments.home)
    state = home.load()
    if state is None:
        raise SystemExit("The local Azure has no state yet; start it with `python -m emulator up`.")
    asyncio.run(serve(home, state, arguments.event_copies))


if __name__ == "__main__":
    main()
