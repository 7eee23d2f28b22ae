"""The way of a request to a deployment and back: streams, disconnections, large bodies, methods, added time."""

import os
import socket
import ssl
import statistics
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import requests
from azure.ai.ml import MLClient
from azure.ai.ml.entities import ManagedOnlineEndpoint, OnlineRequestSettings

from emulator.online.forwarding import Forwarder, Message
from emulator.store import Resource
from tests.emulator.online import ask, create_endpoint, credential, deploy, echo_deployment, servers, set_traffic
from tests.local_azure import LocalAzure


@pytest.fixture(scope="module")
def endpoint(azure: LocalAzure, ml: MLClient) -> ManagedOnlineEndpoint:
    create_endpoint(ml, "way")
    settings = OnlineRequestSettings(max_concurrent_requests_per_instance=2, request_timeout_ms=20000)
    deploy(ml, echo_deployment(azure, ml, "way", "only", request_settings=settings))
    set_traffic(ml, "way", {"only": 100})
    return ml.online_endpoints.get("way")


@pytest.fixture(scope="module")
def headers(ml: MLClient, endpoint: ManagedOnlineEndpoint) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential(ml, endpoint)}"}


def test_a_stream_arrives_as_it_is_made(ml: MLClient, endpoint: ManagedOnlineEndpoint) -> None:
    arrivals = []
    with ask(ml, endpoint, {"stream": 5, "every": 0.3}, stream=True) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        for line in answer.iter_lines():
            if line:
                arrivals.append((line, time.monotonic()))
    assert [line for line, _ in arrivals] == [b"data: %d" % number for number in range(5)]
    assert arrivals[-1][1] - arrivals[0][1] > 0.9


def test_a_client_that_goes_away_ends_the_container_s_work_and_frees_its_place(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, headers: dict[str, str]
) -> None:
    def gone() -> str:
        return ml.online_deployments.get_logs("only", "way", lines=100)

    for _ in range(4):  # twice the places
        answer = ask(ml, endpoint, {"stream": 1000, "every": 0.05}, stream=True)
        next(answer.iter_lines())
        answer.close()
    deadline = time.monotonic() + 10
    while gone().count("the client is gone") < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone().count("the client is gone") == 4
    for _ in range(4):  # gone before there was any answer
        with pytest.raises(requests.ReadTimeout):
            ask(ml, endpoint, {"sleep": 15}, timeout=0.3)
    started = time.monotonic()
    assert ask(ml, endpoint).status_code == 200
    assert time.monotonic() - started < 5


def test_a_large_body_arrives_whole(endpoint: ManagedOnlineEndpoint, headers: dict[str, str]) -> None:
    body = b"x" * (30 << 20)
    answer = requests.post(endpoint.scoring_uri, data=body, headers=headers, timeout=30)
    assert answer.json()["size"] == len(body)


def test_get_and_head_reach_the_container_at_any_path(endpoint: ManagedOnlineEndpoint, headers: dict[str, str]) -> None:
    address = endpoint.scoring_uri.removesuffix("/echo")
    got = requests.get(f"{address}/v1/models/a%2Fb?page=2", headers=headers, timeout=10)
    assert got.json() == {"name": "only", "path": "/v1/models/a%2Fb?page=2", "method": "GET"}
    head = requests.head(f"{address}/v1/models", headers=headers, timeout=10)
    assert head.status_code == 200
    assert int(head.headers["Content-Length"]) > 0
    assert head.content == b""


def test_headers_of_the_answer_arrive_as_they_were_sent_and_keep_no_place(
    ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    for _ in range(5):  # more than the deployment has places
        answer = ask(ml, endpoint, {"notes": ["✓", "zwei"]})
        assert answer.status_code == 200
        assert answer.headers["x-note"].encode("latin-1").decode() == "✓, zwei"


async def test_a_client_that_is_gone_before_the_answer_begins_keeps_no_place() -> None:
    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        return

    async def chunks() -> AsyncIterator[bytes]:
        yield b"more"

    ended = []
    upstream = SimpleNamespace(
        status=200, headers={}, raw_headers=(), content=SimpleNamespace(iter_any=chunks), close=lambda: None
    )
    server = SimpleNamespace(release=ended.append)
    answer = Forwarder(cast(Any, None))._answer(
        Message("POST", "/", {"x-request-id": "1"}, b""),
        Resource("id", "only", {}, {}, "", ""),
        cast(Any, server),
        cast(Any, "instance"),
        cast(Any, upstream),
    )
    await answer({"type": "http", "asgi": {"spec_version": "2.3"}}, cast(Any, receive), cast(Any, send))
    assert ended == ["instance"]


def test_what_clients_break_off_or_misspell_is_no_failure_of_the_server(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint, headers: dict[str, str]
) -> None:
    where = urlsplit(endpoint.scoring_uri)
    for slash in ("/inference%2Fway/echo", "/inference/way%2Fecho"):
        answer = requests.get(f"https://{where.netloc}{slash}", headers=headers, timeout=10)
        assert answer.status_code == 404
    half = f"POST {where.path} HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\n"
    trusted = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    with (
        socket.create_connection((str(where.hostname), where.port or 443)) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(f"{half}Content-Length: 100\r\n\r\nhalf of it".encode())
    assert ask(ml, endpoint).status_code == 200
    assert "Traceback" not in azure.log("control")


def test_the_endpoint_adds_little_time(
    azure: LocalAzure, endpoint: ManagedOnlineEndpoint, headers: dict[str, str]
) -> None:
    """Not a benchmark: an order of magnitude, which a retry, a lock or a slow look-up would break."""
    (container,) = servers(azure.home, "way")
    port = container.net_connections("inet")[0].laddr.port

    def median(address: str) -> float:
        times = []
        with requests.Session() as session:
            for _ in range(60):
                started = time.perf_counter()
                assert session.post(address, data="{}", headers=headers, timeout=10).status_code == 200
                times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times)

    added = median(endpoint.scoring_uri) - median(f"http://127.0.0.1:{port}/echo")
    print(f"added: {added:.1f} ms")
    assert added < 20
