"""The world around the operations API for its tests: run records in memory, and as much of Azure ML as it asks."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import azure.functions as func
import uvicorn
from azure.core.exceptions import ResourceNotFoundError
from starlette.applications import Starlette
from starlette.routing import Route

from function_app.runs import LATE, Conflict, DatasetVersion, Run, Stage, Summary

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
WAY = (
    Stage.RECEIVED, Stage.VALIDATED, Stage.TRAINING, Stage.TRAINED, Stage.APPROVED, Stage.REGISTERED, Stage.DEPLOYING,
    Stage.VERIFYING, Stage.SHIFTING, Stage.LIVE,
)  # fmt: skip


class MemoryStore:
    """Run records in memory, with ETags. ``meanwhile``: what another does just before the next write."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[Run, int]] = {}
        self.reads = 0
        self.meanwhile: Callable[[], None] | None = None

    def put(self, run: Run) -> Run:
        version = self.records[run.id][1] + 1 if run.id in self.records else 1
        self.records[run.id] = (copy.deepcopy(run), version)
        return run

    def get(self, id: str) -> tuple[Run, str] | None:
        self.reads += 1
        found = self.records.get(id)
        return (copy.deepcopy(found[0]), str(found[1])) if found else None

    def create(self, run: Run) -> str:
        self._others_first()
        if run.id in self.records:
            return ""
        self.put(run)
        return "1"

    def save(self, run: Run, etag: str) -> str:
        self._others_first()
        if str(self.records[run.id][1]) != etag:
            raise Conflict(run.id)
        self.put(run)
        return str(self.records[run.id][1])

    def summaries(self, prefix: str = "") -> Iterator[Summary]:
        for run, _ in sorted(self.records.values(), key=lambda record: record[0].id):
            if run.id.startswith(prefix):
                yield Summary(
                    run.id, run.model, run.stage, run.dataset.uploaded_at, run.stage_since + LATE, run.fingerprint,
                    run.ended and run.unsettled, bool(run.release_of),
                )  # fmt: skip

    def _others_first(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()


def a_run(number: int, stage: Stage = Stage.RECEIVED, model: str = "support", **fields: Any) -> Run:
    """A run that has come to ``stage``; a greater ``number`` means newer data."""
    at = START + timedelta(minutes=number)
    dataset = DatasetVersion(f"{model}/data.jsonl", f"0x{number}", 100, at)
    run = Run(id=f"{model}-{number:012x}", model=model, dataset=dataset, received_at=at, **fields)
    stopped = WAY.index(stage) if stage in WAY else WAY.index(Stage.LIVE if stage == Stage.RETIRED else Stage.TRAINED)
    for each in WAY[: stopped + 1]:
        run.move(each, f"it is {each}", at)
    if stage not in WAY:
        run.move(stage, f"it is {stage}", at + timedelta(seconds=30))
    run.recipe = {"engine": "command", "base_model": "embedded", "gate": {"rule": "manual"}, **fields.get("recipe", {})}
    run.numbers = {"model_uri": f"azureml://jobs/{run.id}/outputs/model", "verification": {"questions": 5}}
    return run


class StubMl:
    """Azure ML: registered models, and the deployments on the endpoint of ``support``."""

    def __init__(self) -> None:
        self.registered: dict[tuple[str, str], dict[str, Any]] = {}
        self.places: dict[str, tuple[str, str]] = {}  # the deployment's run id and its model's version
        self.meanwhile: Callable[[], None] | None = None
        self.models = SimpleNamespace(_get=self._get, list=self._list, archive=self._archive, restore=self._restore)
        self.online_deployments = SimpleNamespace(list=self._deployments)
        self.online_endpoints = SimpleNamespace(get=self._endpoint)
        self.serverless_endpoints = SimpleNamespace(list=list)

    def register(self, run: Run) -> None:
        self.registered[run.model, run.model_version] = {"run_id": run.id, "archived": False}

    def deploy(self, run: Run) -> None:
        self.places[run.deployment] = (run.id, run.model_version)

    def _get(self, name: str, version: str) -> Any:
        found = self.registered.get((name, version))
        if found is None:
            raise ResourceNotFoundError(f"no {name}:{version}")
        return SimpleNamespace(
            properties=SimpleNamespace(tags={"run_id": found["run_id"]}, is_archived=found["archived"])
        )

    def _list(self, name: str) -> Iterator[Any]:
        for (model, version), found in sorted(self.registered.items(), reverse=True):
            if model == name and not found["archived"]:
                context = SimpleNamespace(created_at=START)
                tags = {"run_id": found["run_id"], "dataset": "d"}
                yield SimpleNamespace(version=version, tags=tags, creation_context=context)

    def _archive(self, name: str, version: str) -> None:
        self.registered[name, version]["archived"] = True
        if self.meanwhile:
            self.meanwhile()

    def _restore(self, name: str, version: str) -> None:
        self.registered[name, version]["archived"] = False

    def _deployments(self, endpoint: str) -> list[Any]:
        if not self.places:
            raise ResourceNotFoundError(endpoint)
        return [
            SimpleNamespace(
                name=name, provisioning_state="Succeeded", tags={"run_id": id}, instance_type="Standard_E4s_v3",
                instance_count=1, model=f"azureml:{endpoint.rpartition('-')[0]}:{version}",
            )
            for name, (id, version) in self.places.items()
        ]  # fmt: skip

    def _endpoint(self, name: str) -> Any:
        if not self.places:
            raise ResourceNotFoundError(name)
        return SimpleNamespace(provisioning_state="Succeeded", traffic={list(self.places)[-1]: 100})


class StubContainer:
    """The runs container, as far as the operations read it besides the records."""

    def __init__(self, blobs: dict[str, bytes] | None = None) -> None:
        self.blobs = blobs or {}

    def list_blob_names(self, name_starts_with: str) -> Iterator[str]:
        return (name for name in sorted(self.blobs) if name.startswith(name_starts_with))

    def get_blob_client(self, name: str) -> Any:
        def properties() -> Any:
            if name not in self.blobs:
                raise ResourceNotFoundError(name)
            return SimpleNamespace(last_modified=START)

        def download() -> Any:
            properties()
            return SimpleNamespace(readall=lambda: self.blobs[name])

        return SimpleNamespace(get_blob_properties=properties, download_blob=download)


def application(blueprint: func.Blueprint) -> Starlette:
    """The HTTP functions of a blueprint as a web application, under /api as in Azure."""
    app = func.FunctionApp()
    app.register_functions(blueprint)
    routes = []
    for function in app.get_functions():
        trigger = function.get_trigger().get_dict_repr()
        methods = [str(getattr(method, "value", method)) for method in trigger["methods"]]
        path = trigger["route"].replace("{*path}", "{path:path}")
        routes.append(Route(f"/api/{path}", function.get_user_function(), methods=methods))
    return Starlette(routes=routes)


@contextmanager
def served_at(app: Starlette) -> Iterator[str]:
    """Run the web application in a thread; yield its base URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
