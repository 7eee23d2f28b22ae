"""kill -9 at random moments, and what is there afterwards.

The tests share one local Azure and run in this order. The moments are random, from a printed seed; DURABILITY_SEED
repeats them. A job holds a lock while it runs, so that a second run of it at the same time would be seen, and writes
down its beginning and its end.
"""

import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import (
    AmlCompute,
    BuildContext,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
)
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.identity import DefaultAzureCredential
from host_processes import wait_until

from tests.local_azure import LocalAzure, run_emulator

JOB = """
import fcntl, os, pathlib, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with (folder / f"{name}.lock").open("w") as lock, (folder / f"{name}.runs").open("a", buffering=1) as runs:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        runs.write(f"twice {os.getpid()}\\n")
    runs.write(f"begin {os.getpid()}\\n")
    time.sleep(float(sys.argv[3]))
    runs.write(f"end {os.getpid()}\\n")
"""
SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["NAME"].encode())
    do_POST = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
KEPT = "azureml://datastores/workspaceblobstore/paths/kept"


class Customer:
    """Submits jobs, registers models and creates deployments until told to stop; remembers what was answered."""

    def __init__(self, azure: LocalAzure, ml: MLClient, folder: Path) -> None:
        self.azure = azure
        self.ml = ml
        self.folder = folder
        self.jobs: list[str] = []
        self.models: list[str] = []
        self.deployments: list[str] = []
        (folder / "job.py").write_text(JOB)
        ml.compute.begin_create_or_update(AmlCompute(name="cpu", size="Standard_DS3_v2", max_instances=20)).result()
        ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="house", auth_mode="aad_token")).result()
        runs = azure.storage.get_container_client("runs")
        runs.upload_blob("build/server.py", SERVER)
        runs.upload_blob("build/Dockerfile", 'FROM python:3.11\nCMD ["python", "server.py"]\n')
        route = {"port": 8000, "path": "/"}
        self.server = Environment(
            name="server",
            version="1",
            build=BuildContext(path=f"{runs.url}/build/"),
            inference_config={"liveness_route": route, "readiness_route": route, "scoring_route": route},
        )
        ml.environments.create_or_update(self.server)

    def submit(self, name: str) -> None:
        # Some are still running when the next control process has come up, others have ended by then.
        line = f"python {self.folder}/job.py {self.folder} {name} {5 if len(self.jobs) % 2 == 0 else 0.5}"
        image = Environment(name="any", version="1", image="mcr.microsoft.com/any:1")
        self.ml.jobs.create_or_update(command(name=name, command=line, environment=image, compute="cpu"))
        self.jobs.append(name)

    def register(self, name: str) -> None:
        self.ml.models.create_or_update(Model(name=name, version="1", path=KEPT, type="custom_model"))
        self.models.append(name)

    def deploy(self, name: str) -> None:
        self.ml.online_deployments.begin_create_or_update(
            ManagedOnlineDeployment(
                name=name,
                endpoint_name="house",
                environment="azureml:server:1",
                instance_type="Standard_DS3_v2",
                instance_count=1,
                environment_variables={"NAME": name},
            )
        )
        self.deployments.append(name)

    @contextmanager
    def at_work(self, prefix: str) -> Iterator[None]:
        """Meanwhile, three threads ask for one thing after another; what got no answer is not counted on."""
        stop = threading.Event()

        def work(first: int) -> None:
            for number in itertools.count(first, 3):
                for ask in (self.submit, self.register, *([self.deploy] if number % 4 == 0 else [])):
                    with suppress(HttpResponseError, ServiceRequestError, ServiceResponseError):
                        ask(f"{prefix}-{number}")
                if stop.wait(0.5):
                    return

        with ThreadPoolExecutor(3) as pool:
            working = [pool.submit(work, first) for first in range(3)]
            try:
                yield
            finally:
                stop.set()
            for one in working:
                one.result()

    def finds_everything(self) -> None:
        """Every job ends well and never ran twice at once; every model is there; every deployment serves."""
        for name in self.jobs:
            status = wait_until(partial(self.end_of, name), f"the end of {name}", 60)
            assert status == "Completed", "\n".join(
                line for line in self.azure.log("control").splitlines() if f"name={name} " in line
            )
            runs = (self.folder / f"{name}.runs").read_text().splitlines()
            assert not [line for line in runs if line.startswith("twice")], f"{name}: {runs}"
            assert runs[-1].startswith("end"), f"{name}: {runs}"
            for line, before in zip(runs[1:], runs, strict=False):  # one run after another
                assert line.startswith("begin") or before == line.replace("end", "begin"), f"{name}: {runs}"
        for name in self.models:
            assert self.ml.models.get(name, "1").path.endswith("paths/kept")
        for name in self.deployments:
            wait_until(partial(self.serves, name), f"{name} to serve", 60)
            # It serves a moment before it says so.
            wait_until(partial(self.has_succeeded, name), f"{name} to be shown as Succeeded")

    def end_of(self, job: str) -> str | None:
        status = self.ml.jobs.get(job).status
        return status if status in ("Completed", "Failed", "Canceled") else None

    def has_succeeded(self, deployment: str) -> bool:
        return bool(self.ml.online_deployments.get(deployment, "house").provisioning_state == "Succeeded")

    def serves(self, deployment: str) -> bool:
        token = DefaultAzureCredential().get_token("https://ml.azure.com/.default").token
        headers = {"Authorization": f"Bearer {token}", "azureml-model-deployment": deployment}
        url = self.ml.online_endpoints.get("house").scoring_uri
        return requests.post(url, data=b"x", headers=headers, timeout=10).text == deployment


def state(azure: LocalAzure) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((azure.home / "state.json").read_text(encoding="utf-8"))
    return found


def kill(azure: LocalAzure, part: str) -> None:
    """kill -9 a part's whole process group, as the kernel does when memory is short."""
    pid = int(state(azure)["processes"][part]["pid"])
    os.killpg(pid, signal.SIGKILL)


def wait_for_another(azure: LocalAzure, part: str, killed: int) -> None:
    wait_until(lambda: state(azure)["processes"][part]["pid"] != killed, f"the supervisor to start {part} again")


@pytest.fixture(scope="module")
def chance() -> random.Random:
    seed = int(os.environ.get("DURABILITY_SEED") or random.randrange(2**32))  # noqa: S311 - to be repeated
    print(f"DURABILITY_SEED={seed}")
    return random.Random(seed)  # noqa: S311


@pytest.fixture(scope="module")
def customer(azure: LocalAzure, ml: MLClient, tmp_path_factory: pytest.TempPathFactory) -> Customer:
    return Customer(azure, ml, tmp_path_factory.mktemp("jobs"))


def test_the_control_process_can_be_killed_at_any_moment(
    azure: LocalAzure, customer: Customer, chance: random.Random
) -> None:
    with customer.at_work("control"):
        for _ in range(3):  # the supervisor gives a part up that ends a fourth time within a minute
            time.sleep(chance.uniform(0.2, 4))
            pid = state(azure)["processes"]["control"]["pid"]
            kill(azure, "control")
            wait_for_another(azure, "control", pid)
    assert len(customer.jobs) >= 3
    assert customer.deployments
    customer.finds_everything()


def test_everything_can_be_killed_at_any_moment(azure: LocalAzure, customer: Customer, chance: random.Random) -> None:
    with customer.at_work("everything"):
        time.sleep(chance.uniform(0.5, 3))
        os.kill(int(state(azure)["supervisor"]["pid"]), signal.SIGKILL)
        for part in chance.sample(sorted(state(azure)["processes"]), 4):
            kill(azure, part)
        run_emulator(azure.home, "up")
    customer.finds_everything()


def test_azurite_and_mlflow_are_started_again_with_what_they_kept(azure: LocalAzure, customer: Customer) -> None:
    azure.storage.get_blob_client("runs", "kept").upload_blob(b"kept")
    # Azurite writes down every five seconds what it has; an upload of the last moment would be lost with it.
    # Blobs and the places of their bytes are two files, written at different times.
    blobs, places = (azure.home / "azurite" / f"__azurite_db_blob{kind}__.json" for kind in ("", "_extent"))

    def saved() -> bool:
        found = re.search(r'"name":"kept".*?"persistency":\{"id":"([^"]+)"', blobs.read_text(encoding="utf-8"))
        return found is not None and found[1] in places.read_text(encoding="utf-8")

    wait_until(saved, "Azurite to save the blob")
    before = state(azure)["processes"]
    kill(azure, "azurite")
    kill(azure, "mlflow")
    ports = state(azure)["ports"]
    for part in ("azurite", "mlflow"):
        wait_for_another(azure, part, before[part]["pid"])
    wait_until(lambda: _answers(f"http://127.0.0.1:{ports['mlflow']}/health"), "MLflow", 60)
    assert azure.storage.get_blob_client("runs", "kept").download_blob().readall() == b"kept"
    customer.submit("afterwards")
    customer.finds_everything()
    job = customer.ml.jobs.get("afterwards")
    mlflow = f"http://127.0.0.1:{ports['mlflow']}/api/2.0/mlflow"
    query = {"experiment_name": job.experiment_name}
    known = requests.get(f"{mlflow}/experiments/get-by-name", params=query, timeout=10).json()["experiment"]
    search = {"experiment_ids": [known["experiment_id"]], "max_results": 500}
    found = requests.post(f"{mlflow}/runs/search", json=search, timeout=10).json()["runs"]
    kept = {(run["info"]["run_name"], run["info"]["status"]) for run in found}
    assert {name for name, _ in kept} >= set(customer.jobs)
    assert ("afterwards", "FINISHED") in kept


def test_after_all_this_nothing_is_left_behind(azure: LocalAzure, customer: Customer) -> None:
    run_emulator(azure.home, "down")
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = [*process.cmdline(), process.cwd()]
            if any(str(azure.home) in word or str(customer.folder) in word for word in words):
                left.append(process)
    assert not left


def _answers(url: str) -> bool:
    with suppress(requests.RequestException):
        return requests.get(url, timeout=2).ok
    return False
