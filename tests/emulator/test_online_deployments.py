"""Managed online deployments through the unmodified SDK: updates, scaling, probes, crashes, limits, logs, deletion."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.entities import ManagedOnlineEndpoint, OnlineRequestSettings, ProbeSettings
from azure.core.exceptions import HttpResponseError

from tests.emulator.online import (
    QUICK,
    arm_request,
    ask,
    create_endpoint,
    credential,
    deploy,
    echo_deployment,
    servers,
    set_traffic,
)
from tests.local_azure import LocalAzure, run_emulator, until


@pytest.fixture(scope="module")
def endpoint(ml: MLClient) -> ManagedOnlineEndpoint:
    return create_endpoint(ml, "depot")


def pids(ml: MLClient, endpoint: ManagedOnlineEndpoint, deployment: str, count: int = 12) -> set[int]:
    answers = [ask(ml, endpoint, deployment=deployment) for _ in range(count)]
    return {answer.json()["pid"] for answer in answers if answer.status_code == 200}


def test_a_deployment_shows_the_service_s_defaults_for_what_it_was_not_given(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    plain = deploy(ml, echo_deployment(azure, ml, "depot", "plain", liveness_probe=None, readiness_probe=None))
    shown = ml.online_deployments.get("plain", "depot")
    assert shown.provisioning_state == plain.provisioning_state == "Succeeded"
    assert shown.readiness_probe == ProbeSettings(
        failure_threshold=30, success_threshold=1, timeout=2, period=10, initial_delay=10
    )
    assert shown.request_settings.max_concurrent_requests_per_instance == 1
    assert shown.request_settings.request_timeout_ms == 5000
    assert shown.egress_public_network_access == "Enabled"
    assert [deployment.name for deployment in ml.online_deployments.list("depot")] == ["plain"]
    # The SDK's client has the operation, its public side does not.
    client = ml.online_deployments._online_deployment
    (sku,) = client.list_skus(ml.resource_group_name, ml.workspace_name, "depot", "plain")
    assert (sku.sku.name, sku.capacity.default, sku.capacity.minimum) == ("Default", 1, 1)
    ml.online_deployments.begin_delete("plain", "depot").result()
    assert list(ml.online_deployments.list("depot")) == []


def test_an_update_drops_no_request(azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint) -> None:
    settings = OnlineRequestSettings(max_concurrent_requests_per_instance=4, request_timeout_ms=20000)
    deploy(ml, echo_deployment(azure, ml, "depot", "rolling", {"NAME": "old"}, request_settings=settings))
    key = {"Authorization": f"Bearer {credential(ml, endpoint)}"}
    done, answers = threading.Event(), []

    def keep_asking() -> None:
        while not done.is_set():
            answer = ask(ml, endpoint, {"sleep": 0.05}, "rolling", headers=key)
            answers.append((answer.status_code, answer.json().get("name")))

    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            threads.submit(keep_asking)
        until(lambda: answers)
        deploy(ml, echo_deployment(azure, ml, "depot", "rolling", {"NAME": "new"}, request_settings=settings))
        seen = len(answers)
        until(lambda: len(answers) > seen + 10)
        done.set()
    assert {status for status, _ in answers} == {200}
    names = [name for _, name in answers]
    assert names[0] == "old"
    assert set(names[-8:]) == {"new"}


def test_an_update_that_shortens_the_time_of_requests_leaves_those_under_way_theirs(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint, tmp_path: Path
) -> None:
    record = tmp_path / "asked"
    variables = {"NAME": "old", "RECORD": str(record)}
    long, short = (OnlineRequestSettings(request_timeout_ms=milliseconds) for milliseconds in (30000, 1000))
    deploy(ml, echo_deployment(azure, ml, "depot", "hasty", variables, request_settings=long))
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask, ml, endpoint, {"sleep": 12}, "hasty")
        until(record.exists)
        deploy(ml, echo_deployment(azure, ml, "depot", "hasty", {"NAME": "new"}, request_settings=short))
        answer = asked.result()
    assert answer.status_code == 200, answer.text
    assert answer.json()["name"] == "old"
    assert ask(ml, endpoint, {}, "hasty").json()["name"] == "new"


def test_an_update_that_cannot_start_leaves_the_old_one_serving(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    deploy(ml, echo_deployment(azure, ml, "depot", "stable"))
    before = pids(ml, endpoint, "stable")
    with pytest.raises(HttpResponseError, match="this one cannot start"):
        deploy(ml, echo_deployment(azure, ml, "depot", "stable", {"NAME": "broken"}))
    assert ml.online_deployments.get("stable", "depot").provisioning_state == "Failed"
    assert pids(ml, endpoint, "stable") == before
    deploy(ml, echo_deployment(azure, ml, "depot", "stable"))
    assert ml.online_deployments.get("stable", "depot").provisioning_state == "Succeeded"


def test_scaling_adds_and_ends_processes_and_restarts_none(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    deploy(ml, echo_deployment(azure, ml, "depot", "scaled"))
    (first,) = pids(ml, endpoint, "scaled")
    grown = ml.online_deployments.get("scaled", "depot")
    grown.instance_count = 3
    assert deploy(ml, grown).instance_count == 3
    three = pids(ml, endpoint, "scaled")
    assert len(three) == 3
    assert first in three
    grown.instance_count = 1
    deploy(ml, grown)
    until(lambda: len(servers(azure.home, "depot/deployments/scaled")) == 1)
    assert pids(ml, endpoint, "scaled") == {first}


def test_instances_take_turns_and_multiply_the_places(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    settings = OnlineRequestSettings(max_concurrent_requests_per_instance=1, request_timeout_ms=10000)
    deploy(ml, echo_deployment(azure, ml, "depot", "places", request_settings=settings, instance_count=2))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(ml, endpoint, {"sleep": 1.5}, "places"), range(8)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 4 + [429] * 4  # two at work and two that wait, for two instances
    worked = [answer.json()["pid"] for answer in answers if answer.status_code == 200]
    assert sorted(worked.count(pid) for pid in set(worked)) == [2, 2]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "Too many pending requests" in refused.json()["error"]["message"]


def test_a_request_that_waits_longer_than_the_queue_allows_gets_429_and_a_slow_one_408(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    settings = OnlineRequestSettings(
        max_concurrent_requests_per_instance=1, request_timeout_ms=3000, max_queue_wait_ms=500
    )
    deploy(ml, echo_deployment(azure, ml, "depot", "queued", request_settings=settings))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, ml, endpoint, {"sleep": 2}, "queued")
        time.sleep(0.5)
        second = ask(ml, endpoint, {}, "queued")
    assert (first.result().status_code, second.status_code) == (200, 429)
    assert second.elapsed.total_seconds() < 1.5
    slow = ask(ml, endpoint, {"sleep": 30}, "queued")
    assert slow.status_code == 408
    assert slow.elapsed.total_seconds() < 5
    assert ask(ml, endpoint, {}, "queued").status_code == 200  # its place is free again


def test_what_the_container_refuses_is_424_with_its_status_in_a_header(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    deploy(ml, echo_deployment(azure, ml, "depot", "moody"))
    answer = ask(ml, endpoint, {"status": 418}, "moody", headers={"x-request-id": "mine"})
    assert answer.status_code == 424
    assert answer.headers["ms-azureml-model-error-statuscode"] == "418"
    assert answer.headers["azureml-model-deployment"] == "moody"
    assert answer.headers["x-request-id"] == answer.json()["headers"]["x-request-id"] == "mine"
    assert "Authorization" not in answer.json()["headers"]


def test_a_failed_liveness_probe_restarts_the_container(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    deploy(ml, echo_deployment(azure, ml, "depot", "fading", {"SICK_WHILE": str(sick)}))
    (old,) = pids(ml, endpoint, "fading")
    sick.write_text("live")
    until(lambda: ask(ml, endpoint, {}, "fading").status_code == 503)
    sick.unlink()
    (new,) = until(lambda: pids(ml, endpoint, "fading", 1))
    assert new != old
    assert not psutil.pid_exists(old)
    log = ml.online_deployments.get_logs("fading", "depot", lines=20)
    assert "The liveness probe GET /live failed 2 times" in log


def test_a_failed_readiness_probe_only_keeps_requests_away(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    deploy(ml, echo_deployment(azure, ml, "depot", "resting", {"SICK_WHILE": str(sick)}))
    (pid,) = pids(ml, endpoint, "resting")
    sick.write_text("ready")
    until(lambda: ask(ml, endpoint, {}, "resting").status_code == 503)
    sick.unlink()
    assert until(lambda: pids(ml, endpoint, "resting", 1)) == {pid}


def test_a_container_that_is_never_ready_fails_when_its_probe_s_time_is_over(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    started = time.monotonic()
    with pytest.raises(HttpResponseError, match=r"readiness probe GET /ready did not succeed in 3 s"):
        deploy(ml, echo_deployment(azure, ml, "depot", "never-ready"))
    assert 3 < time.monotonic() - started < 15
    assert servers(azure.home, "depot/deployments/never-ready") == []


def test_a_long_initial_delay_makes_nobody_wait_for_a_container_that_is_ready(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    patient = ProbeSettings(initial_delay=500, period=100, failure_threshold=30)
    started = time.monotonic()
    deploy(ml, echo_deployment(azure, ml, "depot", "patient", readiness_probe=patient, liveness_probe=patient))
    assert time.monotonic() - started < 15


def test_a_container_that_crashes_is_started_again_and_given_up_after_some_times(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    deploy(ml, echo_deployment(azure, ml, "depot", "crashing"))
    (old,) = pids(ml, endpoint, "crashing")
    assert ask(ml, endpoint, {"exit": 7}, "crashing").status_code == 503
    (new,) = until(lambda: pids(ml, endpoint, "crashing", 1))
    assert new != old

    def crash_again() -> bool:
        ask(ml, endpoint, {"exit": 7}, "crashing")
        return ml.online_deployments.get("crashing", "depot").provisioning_state == "Failed"

    until(crash_again, 60)
    assert ask(ml, endpoint, {}, "crashing").status_code == 503
    log = ml.online_deployments.get_logs("crashing", "depot", lines=50)
    assert "The container ended with exit code 7; it is started again in" in log
    assert "CrashLoopBackOff" in log
    deploy(ml, echo_deployment(azure, ml, "depot", "crashing"))  # the same again, which is how it is repaired
    assert pids(ml, endpoint, "crashing", 1)


def test_the_logs_of_both_containers_can_be_read(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    deploy(ml, echo_deployment(azure, ml, "depot", "chatty"))
    logs = ml.online_deployments.get_logs
    assert "serving as chatty" in logs("chatty", "depot", lines=10)
    assert "serving as chatty" in logs("chatty", "depot", lines=10, container_type="inference-server")
    fetched = logs("chatty", "depot", lines=10, container_type="storage-initializer")
    assert "Downloaded the build context, 2 files" in fetched
    path = "onlineEndpoints/depot/deployments/chatty/getLogs"
    for body in ({"containerType": "Kitchen"}, {"containerType": {"a": 1}}, {"tail": "all"}, {"tail": 0}):
        assert arm_request(azure, "POST", path, body).status_code == 400


def test_a_deployment_cannot_be_changed_or_deleted_while_it_is_created_nor_deleted_with_traffic(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    slow = ProbeSettings(initial_delay=1, period=1, failure_threshold=5)
    poller = ml.online_deployments.begin_create_or_update(
        echo_deployment(azure, ml, "depot", "busy", {"NAME": "never-ready"}, readiness_probe=slow)
    )
    for change in (
        lambda: ml.online_deployments.begin_delete("busy", "depot"),
        lambda: ml.online_deployments.begin_create_or_update(echo_deployment(azure, ml, "depot", "busy")),
    ):
        with pytest.raises(HttpResponseError, match="another operation in progress") as refused:
            change()
        assert refused.value.status_code == 409
    with pytest.raises(HttpResponseError, match="state is Creating"):
        set_traffic(ml, "depot", {"busy": 100})
    with pytest.raises(HttpResponseError, match="did not succeed"):
        poller.result()
    deploy(ml, echo_deployment(azure, ml, "depot", "busy"))
    set_traffic(ml, "depot", {"busy": 100})
    with pytest.raises(HttpResponseError, match="still gets traffic") as refused:
        ml.online_deployments.begin_delete("busy", "depot")
    assert refused.value.status_code == 409
    set_traffic(ml, "depot", {"BUSY": 100})
    traffic = ml.online_endpoints.get("depot").traffic
    assert traffic["busy"] == 100  # names compare without case
    assert "BUSY" not in traffic
    set_traffic(ml, "depot", {"busy": 0})
    ml.online_deployments.begin_delete("busy", "depot").result()
    assert "busy" not in ml.online_endpoints.get("depot").traffic  # else its next update would name what is gone
    assert servers(azure.home, "depot/deployments/busy") == []
    assert not (azure.home / "deployments" / "onlineendpoints" / "depot" / "deployments" / "busy").exists()


@pytest.mark.parametrize(
    ("properties", "sku", "message"),
    [
        ({}, {}, "needs 'environmentId'"),
        ({"environmentId": "/x/workspaces/local/environments/none/versions/1"}, {}, "does not exist"),
        ({"endpointComputeType": "Kubernetes"}, {}, "none of Kubernetes"),
        ({"model": "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/1"}, {}, "files are in Azure"),
        ({"codeConfiguration": {"codeId": "x"}}, {}, "'scoringScript'"),
        ({"readinessProbe": {"period": "soon"}}, {}, "readinessProbe: 'soon'"),
        ({"requestSettings": {"requestTimeout": "5"}}, {}, "requestTimeout: '5'"),
        ({"requestSettings": {"maxConcurrentRequestsPerInstance": 0}}, {}, "whole number from 1"),
        ({"scaleSettings": {"scaleType": "Magic"}}, {}, "scaleType"),
        ({"scaleSettings": "x"}, {}, "'scaleSettings' must be an object"),
        ({"codeConfiguration": "x"}, {}, "'codeConfiguration' must be an object"),
        ({"requestSettings": 3}, {}, "'requestSettings' must be an object"),
        ({"livenessProbe": 3}, {}, "'livenessProbe' must be an object"),
        ({"livenessProbe": {"failureThreshold": 10**400}}, {}, "livenessProbe: failureThreshold must be"),
        ({"readinessProbe": {"successThreshold": 0}}, {}, "readinessProbe: successThreshold must be"),
        ({"environmentVariables": ["A=b"]}, {}, "'environmentVariables' must be an object"),
        ({"environmentVariables": {"A=B": "c"}}, {}, "no name of a variable"),
        ({"environmentVariables": {"A": {"b": "c"}}}, {}, "must be a text"),
        ({"modelMountPath": 5}, {}, "'modelMountPath' must be a text"),
        ({"model": "ENVIRONMENT"}, {}, "The model 'environments/echo/versions/1' does not exist"),
        ({}, "one", "'sku' must be an object"),
        ({}, {"capacity": 0}, "from 1 to 20"),
        ({}, {"capacity": "two"}, "from 1 to 20"),
    ],
)
def test_a_malformed_deployment_is_refused_with_a_reason(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint, properties: Any, sku: Any, message: str
) -> None:
    good = "environmentId" in properties or message.startswith(("needs", "does", "'scoring"))
    if not good:
        echo_deployment(azure, ml, "depot", "malformed")
        workspace = ml.environments.get("echo", "1").id.removesuffix("/environments/echo/versions/1")
        environment = f"{workspace}/environments/echo/versions/1"
        properties = {"environmentId": environment, **properties}
        properties.update({"model": environment} if properties.get("model") == "ENVIRONMENT" else {})
    sku = {"name": "Default", **sku} if isinstance(sku, dict) else sku
    body = {"location": "westeurope", "sku": sku, "properties": properties}
    answer = arm_request(azure, "PUT", "onlineEndpoints/depot/deployments/malformed", body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_autoscaling_and_data_collection_are_kept_as_they_are_given(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    echo_deployment(azure, ml, "depot", "kept")
    properties = {
        "endpointComputeType": "Managed",
        "environmentId": ml.environments.get("echo", "1").id,
        "environmentVariables": {"NAME": "kept"},
        "scaleSettings": {"scaleType": "TargetUtilization", "minInstances": 1, "maxInstances": 3},
        "appInsightsEnabled": True,
        "dataCollector": {"collections": {"request": {"dataCollectionMode": "Enabled", "samplingRate": 1.0}}},
        "egressPublicNetworkAccess": "Disabled",
    }
    path = "onlineEndpoints/depot/deployments/kept"
    assert arm_request(azure, "PUT", path, {"location": "westeurope", "properties": properties}).status_code == 201
    until(lambda: arm_request(azure, "GET", path).json()["properties"]["provisioningState"] == "Succeeded")
    shown = arm_request(azure, "GET", path).json()["properties"]
    assert {name: shown[name] for name in properties} == properties
    assert ml.online_deployments.get("kept", "depot").data_collector.collections["request"]


def test_after_a_kill_deployments_serve_again_and_what_was_begun_ends(azure: LocalAzure, ml: MLClient) -> None:
    endpoint = create_endpoint(ml, "lasting")
    deploy(ml, echo_deployment(azure, ml, "lasting", "steady", instance_count=2))
    set_traffic(ml, "lasting", {"steady": 100})
    endpoint = ml.online_endpoints.get("lasting")
    key = credential(ml, endpoint)
    broken = {"NAME": "never-ready"}
    update = echo_deployment(azure, ml, "lasting", "steady", broken, instance_count=2, readiness_probe=QUICK)
    with pytest.raises(HttpResponseError):  # it fails, and the old revision serves on
        deploy(ml, update)
    ml.online_deployments.begin_create_or_update(
        echo_deployment(azure, ml, "lasting", "halfway", {"NAME": "never-ready"}, readiness_probe=QUICK)
    )
    ghosts = until(lambda: len(found := servers(azure.home, "lasting")) == 3 and found)
    for process in psutil.process_iter():
        try:
            if str(azure.home) in process.cmdline() and "emulator" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
        except (psutil.Error, ProcessLookupError):
            continue
    assert all(process.is_running() for process in ghosts)
    run_emulator(azure.home, "up")
    until(lambda: ask(ml, endpoint).status_code == 200, 30)
    assert credential(ml, endpoint) == key
    assert not any(process.is_running() for process in ghosts)
    until(lambda: ml.online_deployments.get("halfway", "lasting").provisioning_state == "Failed")
    until(lambda: len(servers(azure.home, "lasting/deployments/steady")) == 2)
