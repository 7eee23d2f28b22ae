"""A running local Azure under rough treatment: races, odd names, children that stay, ends and starts.

The tests share one and run in this order: the last ones stop it and start it again.
"""

import http.client
import json
import os
import signal
import socket
import sqlite3
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from azure.identity import DefaultAzureCredential
from host_processes import wait_until

from tests.local_azure import LocalAzure, exports, run_emulator

Json = dict[str, Any]
SERVER = """
import http.server, os, pathlib, subprocess, time
folder = pathlib.Path(os.environ["FOLDER"])
child = subprocess.Popen(["sleep", "987"])
(folder / "pids").write_text(f"{os.getpid()} {child.pid}")
if os.environ["SLOW"] == "yes":
    time.sleep(987)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


class Manager:
    """Resource Manager over plain HTTP: what an SDK would refuse by itself must be refused there too."""

    def __init__(self, azure: LocalAzure) -> None:
        self.azure = azure
        self.id = (
            f"/subscriptions/{azure.environment['AZURE_SUBSCRIPTION_ID']}/resourceGroups/local/providers"
            "/Microsoft.MachineLearningServices/workspaces/local"
        )
        self.token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token

    @property
    def url(self) -> str:
        return self.azure.environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]

    def call(self, method: str, path: str, properties: Json | None = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        body = None if properties is None else {"properties": properties}
        return requests.request(method, f"{self.url}{self.id}/{path}", json=body, headers=headers, timeout=30)

    def put(self, path: str, **properties: Any) -> Json:
        answer = self.call("PUT", path, properties)
        assert answer.ok, answer.text
        found: Json = answer.json()
        return found

    def get(self, path: str) -> Json:
        properties: Json = self.call("GET", path).json()["properties"]
        return properties

    def submit(self, name: str, command: str, **more: Any) -> requests.Response:
        ids = {"environmentId": f"{self.id}/environments/any/versions/1", "computeId": f"{self.id}/computes/cpu"}
        return self.call("PUT", f"jobs/{name}", {"jobType": "Command", "command": command, **ids, **more})

    def ended(self, name: str) -> str:
        ends = ("Completed", "Failed", "Canceled")
        return str(wait_until(lambda: (s := self.get(f"jobs/{name}")["status"]) in ends and s, f"the end of {name}"))


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pids(folder: Path) -> list[int]:
    """What a program wrote into the file ``pids`` once it ran."""
    file = folder / "pids"
    wait_until(lambda: file.exists() and file.read_text().strip(), "pids")
    found = [int(pid) for pid in file.read_text().split()]
    file.unlink()
    return found


@pytest.fixture(scope="module")
def arm(azure: LocalAzure) -> Manager:
    manager = Manager(azure)
    manager.put("computes/cpu", computeType="AmlCompute", properties={"scaleSettings": {"maxNodeCount": 4}})
    manager.put("environments/any/versions/1", image="any")
    runs = azure.storage.get_container_client("runs")
    runs.upload_blob("build/server.py", SERVER)
    runs.upload_blob("build/Dockerfile", 'FROM python:3.11\nCMD ["python", "server.py"]\n')
    manager.put("environments/server/versions/1", build={"contextUri": f"{runs.url}/build/"})
    manager.put("onlineEndpoints/house", authMode="Key")
    return manager


def deploy(arm: Manager, name: str, folder: Path, slow: str = "no", endpoint: str = "house") -> requests.Response:
    variables = {"FOLDER": str(folder), "SLOW": slow}
    environment = f"{arm.id}/environments/server/versions/1"
    body = {"environmentId": environment, "environmentVariables": variables}
    return arm.call("PUT", f"onlineEndpoints/{endpoint}/deployments/{name}", body)


def test_one_job_submitted_by_many_at_once_runs_once(arm: Manager, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: arm.submit("once", f"echo ran >> {tmp_path}/times"), range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 201]
    assert arm.ended("once") == "Completed"
    assert (tmp_path / "times").read_text() == "ran\n"


def test_what_a_job_leaves_in_the_background_ends_with_it(arm: Manager, tmp_path: Path) -> None:
    arm.submit("parent", f"sleep 987 & echo $! > {tmp_path}/pids")
    assert arm.ended("parent") == "Completed"
    assert not runs(pids(tmp_path)[0])


@pytest.mark.parametrize(
    "path",
    [
        "jobs/..", "jobs/a b", "jobs/-a", "jobs/" + "x" * 256, "computes/..", "codes/.x/versions/1",
        "environments/e/versions/..", "models/a%25/versions/1", "data/d/versions/.", "onlineEndpoints/ab",
        "onlineEndpoints/a_b_c", "onlineEndpoints/" + "x" * 33, "onlineEndpoints/house/deployments/1st",
        "onlineEndpoints/house/deployments/blue-",
    ],
)  # fmt: skip
def test_names_that_azure_refuses_are_refused(arm: Manager, path: str) -> None:
    # Not by requests: it would resolve the dots.
    address = urlsplit(arm.url)
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    connection = http.client.HTTPSConnection(str(address.hostname), address.port, context=context, timeout=10)
    body = json.dumps({"properties": {}})
    headers = {"Authorization": f"Bearer {arm.token}"}
    connection.request("PUT", f"{arm.id}/{path.replace(' ', '%20')}", body, headers)
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    connection.close()
    assert (answer.status, error["code"]) == (400, "UserError")
    assert "letters, digits" in error["message"]


def test_a_jobs_inputs_cannot_be_named_out_of_its_folder(arm: Manager) -> None:
    refused = arm.submit("x", "true", inputs={"../../x": {"jobInputType": "literal", "value": "1"}})
    assert refused.status_code == 400
    assert "'../../x'" in refused.json()["error"]["message"]


def test_keys_outside_ascii_are_wrong_keys(arm: Manager) -> None:
    wrong = "schlüssel".encode()
    headers = {"Authorization": b"Bearer " + wrong}
    assert requests.post(f"{arm.url}/inference/house/score", headers=headers, timeout=10).status_code == 401
    assert requests.get(f"{arm.url}{arm.id}", headers=headers, timeout=10).status_code == 401
    query = {"resource": "https://ml.azure.com"}
    identity = arm.azure.environment["IDENTITY_ENDPOINT"]
    answer = requests.get(identity, params=query, headers={"X-IDENTITY-HEADER": wrong}, timeout=10)
    assert answer.status_code == 401


def test_a_deployment_that_is_being_created_is_not_started_twice_and_ends_with_its_endpoint(
    arm: Manager, tmp_path: Path
) -> None:
    arm.put("onlineEndpoints/hut", authMode="Key")
    wait_until(lambda: arm.get("onlineEndpoints/hut")["provisioningState"] == "Succeeded", "the endpoint")
    created = deploy(arm, "slow", tmp_path, "yes", "hut")
    assert created.status_code == 201
    server = pids(tmp_path)
    for again in (
        deploy(arm, "slow", tmp_path, "yes", "hut"),
        arm.call("DELETE", "onlineEndpoints/hut/deployments/slow"),
    ):
        assert again.status_code == 409
        assert "in progress" in again.json()["error"]["message"]
    assert arm.call("DELETE", "onlineEndpoints/hut").status_code == 202
    wait_until(lambda: arm.call("GET", "onlineEndpoints/hut").status_code == 404, "the endpoint's end")
    assert not any(map(runs, server))
    headers = {"Authorization": f"Bearer {arm.token}"}
    operation = requests.get(created.headers["Azure-AsyncOperation"], headers=headers, timeout=10).json()
    assert operation["status"] == "Failed"
    assert "deleted" in operation["error"]["message"]


def test_the_children_of_a_server_that_crashed_end_before_it_is_started_again(arm: Manager, tmp_path: Path) -> None:
    deploy(arm, "blue", tmp_path)
    path = "onlineEndpoints/house/deployments/blue"
    wait_until(lambda: arm.get(path)["provisioningState"] == "Succeeded", "blue")
    server, child = pids(tmp_path)
    os.kill(server, signal.SIGKILL)
    started_again = pids(tmp_path)
    assert not runs(child)
    # Deleting it while it is started again leaves nothing either.
    assert arm.call("DELETE", path).status_code == 202
    wait_until(lambda: arm.call("GET", path).status_code == 404, "the deployment's end")
    assert not any(map(runs, started_again))


def test_down_ends_what_does_not_listen_and_the_control_process_is_not_killed(arm: Manager, tmp_path: Path) -> None:
    arm.submit("stubborn", f"trap '' TERM; echo $$ > {tmp_path}/pids; while true; do sleep 0.1; done")
    pid = pids(tmp_path)[0]
    assert runs(pid)
    run_emulator(arm.azure.home, "down")
    assert not runs(pid)
    assert arm.azure.log("control").splitlines()[-1].endswith("control stopped")


def test_saved_state_holds_although_ports_have_changed(arm: Manager, azure: LocalAzure, tmp_path: Path) -> None:
    """And a job whose cancellation was asked for just before the end is not run again."""
    before = json.loads((azure.home / "state.json").read_text(encoding="utf-8"))["ports"]
    job = f"{arm.id}/jobs/stubborn"
    with sqlite3.connect(azure.home / "resources.db") as database:
        row = database.execute("SELECT body FROM resources WHERE id = ?", (job,)).fetchone()
        body = json.loads(row[0])
        body["properties"]["status"] = "CancelRequested"
        database.execute("UPDATE resources SET body = ? WHERE id = ?", (json.dumps(body), job))
    database.close()
    with socket.create_server(("127.0.0.1", before["mlflow"])), socket.create_server(("127.0.0.1", before["blob"])):
        run_emulator(azure.home, "up")
        azure.environment = exports(run_emulator(azure.home, "env"))
        os.environ.update(azure.environment)
        after = json.loads((azure.home / "state.json").read_text(encoding="utf-8"))["ports"]
        assert [part for part in before if before[part] != after[part]] == ["blob", "mlflow"]
        assert arm.get("onlineEndpoints/house")["scoringUri"] == f"{arm.url}/inference/house/score"
        services = arm.get("jobs/once")["services"]
        assert services["Studio"]["endpoint"].startswith(f"http://127.0.0.1:{after['mlflow']}/#/experiments/")
        # Its build context was registered with an address of the old port.
        deploy(arm, "green", tmp_path)
        assert len(pids(tmp_path)) == 2
        assert arm.ended("stubborn") == "Canceled"
        assert "job name=stubborn restarted_from" not in azure.log("control")


def test_down_ends_jobs_and_servers_although_the_supervisor_was_killed(arm: Manager, tmp_path: Path) -> None:
    arm.submit("orphan", f"echo $$ > {tmp_path}/pids; sleep 987")
    (tmp_path / "server").mkdir()
    deploy(arm, "orphan", tmp_path / "server", slow="yes")
    left = [*pids(tmp_path), *pids(tmp_path / "server")]
    state = json.loads((arm.azure.home / "state.json").read_text(encoding="utf-8"))
    os.kill(int(state["supervisor"]["pid"]), signal.SIGKILL)
    assert "is stopped" in run_emulator(arm.azure.home, "down")
    assert not any(map(runs, left))


def test_what_holds_keys_is_readable_by_this_user_alone(azure: LocalAzure) -> None:
    for name in ("state.json", "functions-keys.json", "resources.db", "events.db", "logs/control.log"):
        assert (azure.home / name).stat().st_mode & 0o077 == 0, name
