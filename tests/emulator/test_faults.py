"""Faults on request, seen by the unmodified SDK and by plain HTTP."""

import time
from typing import Any

import pytest
import requests
from azure.ai.ml import MLClient
from azure.ai.ml.entities import Model
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from host_processes import wait_until

from emulator.faults import Faults
from tests.local_azure import LocalAzure


@pytest.fixture(scope="module")
def url(azure: LocalAzure) -> str:
    return azure.environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]


@pytest.fixture(scope="module")
def headers(azure: LocalAzure) -> dict[str, str]:
    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
    return {"Authorization": f"Bearer {token}"}


def register(ml: MLClient, name: str) -> Model:
    path = "azureml://datastores/workspaceblobstore/paths/m"
    return ml.models.create_or_update(Model(name=name, version="1", path=path, type="custom_model"))


def test_the_sdk_rides_out_a_busy_service(azure: LocalAzure, ml: MLClient) -> None:
    with azure.faults(method="put", path="*/MODELS/*", status=503, retry_after=0, times=2) as fault:
        assert register(ml, "patient").version == "1"
        assert fault.hits == 2


def test_the_sdk_rides_out_broken_connections(azure: LocalAzure, ml: MLClient) -> None:
    with azure.faults(method="PUT", path="*/models/*", drop=True, times=2) as fault:
        assert register(ml, "dropped").version == "1"
        assert fault.hits == 2


def test_before_nothing_happened_and_after_only_the_answer_is_another(azure: LocalAzure, ml: MLClient) -> None:
    put: dict[str, Any] = {"method": "PUT", "path": "*/models/*", "status": 409}
    with azure.faults(**put, when="before"), pytest.raises(HttpResponseError, match=r"\(Conflict\) A fault"):
        register(ml, "before")
    with azure.faults(**put, when="after"), pytest.raises(HttpResponseError, match=r"\(Conflict\) A fault"):
        register(ml, "after")
    with pytest.raises(ResourceNotFoundError):
        ml.models.get("before", "1")
    assert ml.models.get("after", "1").name == "after"


def test_an_answer_lost_after_the_fact_is_no_second_model(
    azure: LocalAzure, ml: MLClient, url: str, headers: dict[str, str]
) -> None:
    with azure.faults(method="PUT", path="*/models/*", drop=True, when="after", times=1):
        register(ml, "twice")
    assert [model.version for model in ml.models.list("twice")] == ["1"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_latency_is_added_and_the_answer_is_the_real_one(azure: LocalAzure, url: str, when: str) -> None:
    metadata = azure.environment["ARM_CLOUD_METADATA_URL"]
    with azure.faults(path="/metadata/*", latency=0.4, when=when):
        started = time.monotonic()
        answer = requests.get(metadata, timeout=10)
        assert time.monotonic() - started >= 0.4
    assert answer.json()["resourceManager"] == f"{url}/"


def test_each_service_fails_in_its_own_shape(azure: LocalAzure, url: str, headers: dict[str, str]) -> None:
    workspace = f"/subscriptions/{azure.environment['AZURE_SUBSCRIPTION_ID']}/resourceGroups/local/providers"
    with azure.faults(status=429, retry_after=7):
        arm = requests.get(f"{url}{workspace}", headers=headers, timeout=10)
        history = requests.get(f"{url}/history/v1.0{workspace}/runs/x/details", headers=headers, timeout=10)
        model = requests.post(f"{url}/inference/house/score", data=b"{}", timeout=10)
        token = requests.get(azure.environment["IDENTITY_ENDPOINT"], timeout=10)
    for answer in (arm, history, model, token):
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert arm.json()["error"]["code"] == history.json()["error"]["code"] == "TooManyRequests"
    assert model.json()["error"]["code"] == 429
    assert token.json()["statusCode"] == 429
    with azure.faults(status=504, body={"mine": True}):
        assert requests.get(url, timeout=10).json() == {"mine": True}


def test_a_dropped_connection_gives_no_answer_at_all(azure: LocalAzure, url: str) -> None:
    with azure.faults(path="/inference/*", drop=True), pytest.raises(requests.ConnectionError):
        requests.post(f"{url}/inference/house/score", data=b"x" * 5_000_000, timeout=10)


def test_a_lost_event_is_lost_and_the_next_one_is_not(azure: LocalAzure) -> None:
    with azure.faults(kind="event", subscription="datasets", lost=True, times=1) as fault:
        azure.drop("faulty/first.jsonl", b"{}\n")
        wait_until(lambda: fault.hits == 1, "the event to be lost")
        azure.drop("faulty/second.jsonl", b"{}\n")
        wait_until(lambda: "event=delivery subscription=datasets" in azure.log("control"), "the second event")
    assert azure.log("control").count("event=delivery subscription=datasets") == 1


def test_adding_a_fault_needs_a_token(url: str) -> None:
    answer = requests.post(f"{url}/_emulator/faults", json={"status": 503}, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "InvalidAuthenticationToken")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({}, "Give status, drop or latency"),
        ({"status": 503, "colour": "red"}, "unknown field `colour`"),
        ({"status": 200}, "`int` >= 300 - at `$.status`"),
        ({"status": "503"}, "at `$.status`"),
        ({"status": 503, "drop": True}, "not both"),
        ({"latency": 1, "retry_after": 1}, "give its status"),
        ({"latency": -1}, "at `$.latency`"),
        ({"status": 503, "when": "never"}, "at `$.when`"),
        ({"status": 503, "times": 0}, "at `$.times`"),
        ({"status": 503, "probability": 1.5}, "at `$.probability`"),
        ({"kind": "blob", "status": 503}, "'blob' - at `$.kind`"),
        ({"kind": "webhook", "path": "*", "status": 503}, "unknown field `path`"),
        ({"kind": "event"}, "Give copies, delay, reorder_within or lost"),
    ],
)
def test_what_is_no_fault_is_refused_with_the_reason(
    url: str, headers: dict[str, str], wanted: dict[str, Any], said: str
) -> None:
    answer = requests.post(f"{url}/_emulator/faults", json=wanted, headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UserError")
    assert said in answer.json()["error"]["message"]
    assert "docs/emulator.md" in answer.json()["error"]["message"]


def test_faults_are_listed_and_cleared_one_by_one_and_all_at_once(url: str, headers: dict[str, str]) -> None:
    faults = f"{url}/_emulator/faults"
    ids = [
        requests.post(faults, json={"path": "/nowhere", "status": status}, headers=headers, timeout=10).json()["id"]
        for status in (500, 502, 504)
    ]
    assert requests.delete(f"{faults}/{ids[0]}", headers=headers, timeout=10).json()["status"] == 500
    assert requests.delete(f"{faults}/{ids[0]}", headers=headers, timeout=10).status_code == 404
    listed = requests.get(faults, headers=headers, timeout=10).json()["value"]
    assert [(fault["id"], fault["hits"]) for fault in listed] == [(ids[1], 0), (ids[2], 0)]
    assert requests.delete(faults, headers=headers, timeout=10).status_code == 204
    assert requests.get(faults, headers=headers, timeout=10).json()["value"] == []


def test_the_newest_fault_that_strikes_wins() -> None:
    faults = Faults()
    faults.add({"status": 500})
    faults.add({"status": 503, "times": 1})
    found = [faults.request("GET", "/x") for _ in range(2)]
    assert [fault and fault.status for fault in found] == [503, 500]
    assert faults.request("DELETE", "/_emulator/faults") is None


def test_a_seed_repeats_the_same_decisions() -> None:
    def decisions(**seed: int) -> tuple[list[bool], int]:
        faults = Faults()
        shown = faults.add({"status": 503, "probability": 0.3, **seed})
        return [faults.request("GET", "/x") is not None for _ in range(200)], shown["seed"]

    first, seed = decisions()
    assert 20 < sum(first) < 110
    assert decisions(seed=seed) == (first, seed)
    assert decisions(seed=seed + 1)[0] != first
