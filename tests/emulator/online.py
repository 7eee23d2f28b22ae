"""What the tests of online endpoints share: a small server as the container, and ways to deploy and to ask it."""

import json
from pathlib import Path
from typing import Any

import psutil
import requests
from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    BuildContext,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    ProbeSettings,
)
from azure.identity import DefaultAzureCredential

from tests.local_azure import LocalAzure

QUICK = ProbeSettings(initial_delay=1, period=1, timeout=1, failure_threshold=2, success_threshold=1)

# Answers who it is and what it was sent. The body of a POST may ask for more: a status, a delay, a stream, its end.
SERVER = """
import http.server, json, os, sys, time
name = os.environ["NAME"]
if name == "broken":
    sys.exit("this one cannot start")
sick = os.environ.get("SICK_WHILE", "")
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_GET(self):
        if self.path in ("/live", "/ready"):
            state = open(sick).read() if sick and os.path.exists(sick) else ""
            status = 500 if self.path[1:] in state or name == "never-ready" else 200
            return self.answer(status, b"")
        self.answer(200, json.dumps({"name": name, "path": self.path, "method": self.command}).encode())
    do_HEAD = do_GET
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if record := os.environ.get("RECORD"):
            with open(record, "a") as file:
                file.write(body.decode() + "\\n")
        try:
            wish = json.loads(body)
        except ValueError:
            wish = {}
        if "exit" in wish:
            os._exit(wish["exit"])
        time.sleep(wish.get("sleep", float(os.environ.get("SLOW", 0))))
        if "stream" in wish:
            return self.stream(wish["stream"], wish["every"])
        told = {"name": name, "pid": os.getpid(), "path": self.path, "size": len(body), "headers": dict(self.headers)}
        self.answer(wish.get("status", 200), json.dumps(told).encode(), wish.get("notes", ()))
    def answer(self, status, content, notes=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        for note in notes:
            self._headers_buffer.append(f"x-note: {note}\\r\\n".encode())  # send_header takes Latin-1 only
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
    def stream(self, count, every):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for number in range(count):
                self.wfile.write(b"data: %d\\n\\n" % number)
                self.wfile.flush()
                time.sleep(every)
        except OSError:
            print("the client is gone after", number, flush=True)
    def log_message(self, *args):
        pass
print("serving as", name, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def create_endpoint(ml: MLClient, name: str, auth_mode: str = "key", **settings: Any) -> ManagedOnlineEndpoint:
    ml.online_endpoints.begin_create_or_update(
        ManagedOnlineEndpoint(name=name, auth_mode=auth_mode, **settings)
    ).result()
    return ml.online_endpoints.get(name)


def echo_environment(azure: LocalAzure, ml: MLClient) -> str:
    """The environment whose build context holds SERVER."""
    runs = azure.storage.get_container_client("runs")
    runs.upload_blob("build/echo/server.py", SERVER, overwrite=True)
    runs.upload_blob("build/echo/Dockerfile", 'FROM python:3.11\nCMD ["python", "server.py"]\n', overwrite=True)
    routes = {
        f"{kind}_route": {"port": 8000, "path": f"/{path}"}
        for kind, path in (("liveness", "live"), ("readiness", "ready"), ("scoring", "echo"))
    }
    build = BuildContext(path=f"{runs.url}/build/echo/")
    ml.environments.create_or_update(Environment(name="echo", version="1", build=build, inference_config=routes))
    return "azureml:echo:1"


def echo_deployment(
    azure: LocalAzure, ml: MLClient, endpoint: str, name: str, variables: dict[str, str] | None = None, **settings: Any
) -> ManagedOnlineDeployment:
    """A deployment of SERVER, not sent yet."""
    settings = {"instance_count": 1, "liveness_probe": QUICK, "readiness_probe": QUICK, **settings}
    return ManagedOnlineDeployment(
        name=name,
        endpoint_name=endpoint,
        environment=echo_environment(azure, ml),
        instance_type="Standard_DS3_v2",
        environment_variables={"NAME": name, **(variables or {})},
        **settings,
    )


def deploy(ml: MLClient, deployment: ManagedOnlineDeployment) -> ManagedOnlineDeployment:
    return ml.online_deployments.begin_create_or_update(deployment).result()


def set_traffic(ml: MLClient, name: str, traffic: dict[str, int], mirror: dict[str, int] | None = None) -> None:
    endpoint = ml.online_endpoints.get(name)
    endpoint.traffic, endpoint.mirror_traffic = traffic, mirror or {}
    ml.online_endpoints.begin_create_or_update(endpoint).result()


def credential(ml: MLClient, endpoint: ManagedOnlineEndpoint) -> str:
    """What opens the endpoint, by its own way of authentication."""
    keys = ml.online_endpoints.get_keys(endpoint.name)
    return str(getattr(keys, "primary_key", None) or keys.access_token)


def ask(
    ml: MLClient,
    endpoint: ManagedOnlineEndpoint,
    wish: Any = None,
    deployment: str = "",
    timeout: float = 30,
    **options: Any,
) -> requests.Response:
    """POST a wish to the endpoint's address, or to one of its deployments."""
    headers = {"Authorization": f"Bearer {credential(ml, endpoint)}", **options.pop("headers", {})}
    if deployment:
        headers["azureml-model-deployment"] = deployment
    return requests.post(endpoint.scoring_uri, data=json.dumps(wish or {}), headers=headers, timeout=timeout, **options)


def entra_token(scope: str = "https://ml.azure.com/.default") -> str:
    return DefaultAzureCredential().get_token(scope).token


def arm_request(
    azure: LocalAzure, method: str, path: str, body: Any = None, version: str = "2023-04-01-preview"
) -> requests.Response:
    """A raw call of Resource Manager, for what the SDK cannot send or does not show."""
    arm = azure.environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]
    workspace = (
        f"{arm}/subscriptions/{azure.environment['AZURE_SUBSCRIPTION_ID']}/resourceGroups/local/providers"
        "/Microsoft.MachineLearningServices/workspaces/local"
    )
    headers = {"Authorization": f"Bearer {entra_token('https://management.azure.com/.default')}"}
    url = f"{workspace}/{path}?api-version={version}"
    return requests.request(method, url, json=body, headers=headers, timeout=30)


def servers(home: Path, endpoint: str) -> list[psutil.Process]:
    """The processes that serve an endpoint, by their folder."""
    place = f"{home}/deployments/onlineendpoints/{endpoint}/"
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(place) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
