"""Compute clusters through the unmodified SDK: create, update, list, sizes, usage, nodes, delete, refusals."""

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.entities import AmlCompute, AmlComputeSshSettings, ComputeInstance, KubernetesCompute
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from job_helpers import Arm, client, completed, submit, wait

from tests.local_azure import LocalAzure

SCALE = {"scaleSettings": {"maxNodeCount": 2}}


@pytest.fixture(scope="module")
def ml(azure: LocalAzure) -> MLClient:
    return client(azure)


@pytest.fixture(scope="module")
def arm(azure: LocalAzure) -> Arm:
    return Arm(azure)


def create(ml: MLClient, name: str, **settings: object) -> AmlCompute:
    cluster = AmlCompute(name=name, **{"size": "Standard_DS3_v2", "max_instances": 2, **settings})  # type: ignore[arg-type]
    made: AmlCompute = ml.compute.begin_create_or_update(cluster).result()
    return made


def test_a_cluster_comes_back_as_it_was_given(ml: MLClient, arm: Arm) -> None:
    made = create(
        ml,
        "whole",
        description="some words",
        tags={"a": "b"},
        tier="low_priority",
        min_instances=1,
        max_instances=3,
        idle_time_before_scale_down=100,
        ssh_settings=AmlComputeSshSettings(admin_username="me", ssh_key_value="ssh-rsa x", admin_password="secret"),
    )
    for cluster in (made, ml.compute.get("whole")):
        assert cluster.provisioning_state == "Succeeded"
        assert (cluster.size, cluster.tier, cluster.description) == ("Standard_DS3_v2", "low_priority", "some words")
        assert (cluster.min_instances, cluster.max_instances, cluster.tags) == (1, 3, {"a": "b"})
        assert cluster.idle_time_before_scale_down == 100
        assert cluster.ssh_settings.admin_username == "me"
        assert cluster.created_on
    assert "secret" not in arm.call("GET", "computes/whole").text


def test_an_update_keeps_what_it_was_and_changes_the_scale(ml: MLClient, arm: Arm) -> None:
    before = create(ml, "grows")
    before.max_instances, before.idle_time_before_scale_down = 5, 200
    after = ml.compute.begin_update(before).result()
    assert (after.max_instances, after.idle_time_before_scale_down) == (5, 200)
    assert after.created_on == before.created_on
    patched = arm.call(
        "PATCH", "computes/grows", {"properties": {"properties": {"scaleSettings": {"maxNodeCount": 7}}}}
    )
    assert patched.status_code == 200
    changed = ml.compute.get("grows")
    assert (changed.max_instances, changed.idle_time_before_scale_down) == (7, 200)
    with pytest.raises(HttpResponseError, match="vmSize of a cluster cannot be changed"):
        create(ml, "grows", size="Standard_NC6s_v3")
    with pytest.raises(HttpResponseError, match="vmPriority of a cluster cannot be changed"):
        create(ml, "grows", tier="low_priority")


def test_the_answers_have_the_status_codes_and_headers_of_the_service(arm: Arm) -> None:
    body = {"location": "westeurope", "properties": {"computeType": "AmlCompute", "properties": SCALE}}
    for state in ("Creating", "Updating"):
        answer = arm.call("PUT", "computes/recorded", body)
        assert (answer.status_code, answer.json()["properties"]["provisioningState"]) == (201, state)
        assert "/computeOperationsStatus/" in answer.headers["Azure-AsyncOperation"]
    shown = arm.call("GET", "computes/recorded").json()["properties"]
    assert shown["provisioningState"] == "Succeeded"
    assert shown["properties"]["nodeStateCounts"]["idleNodeCount"] == 0
    missing = arm.call("GET", "computes/missing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "ComputeNotFound")
    assert arm.call("DELETE", "computes/recorded").status_code == 202


def test_many_clusters_are_listed_page_by_page(ml: MLClient) -> None:
    names = {f"many-{number}" for number in range(55)}
    for name in names:
        create(ml, name)
    assert names <= {cluster.name for cluster in ml.compute.list()}
    assert not list(ml.compute.list(compute_type="computeinstance"))


def test_sizes_have_their_real_numbers(ml: MLClient) -> None:
    # vars(): the SDK's classes take the answer's own names, not those that they declare.
    sizes = {size.name: vars(size) for size in ml.compute.list_sizes()}
    a100, small = sizes["Standard_NC24ads_A100_v4"], sizes["Standard_DS3_v2"]
    assert (a100["vCPUs"], a100["gpus"], a100["memoryGB"]) == (24, 1, 220)
    assert (small["vCPUs"], small["gpus"], small["memoryGB"], small["premiumIO"]) == (4, 0, 14, True)
    assert not sizes["Standard_D3_v2"]["premiumIO"]
    assert {size["gpus"] for size in sizes.values()} == {0, 1, 2, 4, 8}
    assert len(list(ml.compute.list_sizes(compute_type="AmlCompute"))) == len(sizes)


def test_running_jobs_show_as_nodes_and_usage(ml: MLClient, arm: Arm) -> None:
    def cores() -> int:
        rows = map(vars, ml.compute.list_usage())
        return int(next(row["currentValue"] for row in rows if "Dedicated" in row["name"]["value"]))

    create(ml, "busy", max_instances=4)
    before = cores()
    submit(ml, "holds", "sleep 987", compute="busy", instance_count=3)
    wait(ml, "holds", "Running")
    counts = arm.call("GET", "computes/busy").json()["properties"]["properties"]
    assert (counts["currentNodeCount"], counts["nodeStateCounts"]["runningNodeCount"]) == (3, 3)
    assert [vars(node)["runId"] for node in ml.compute.list_nodes("busy")] == ["holds"] * 3
    assert cores() - before == 3 * 4
    ml.jobs.begin_cancel("holds").result()
    assert list(ml.compute.list_nodes("busy")) == []
    assert cores() == before


def test_a_cluster_is_deleted_when_its_jobs_have_ended(ml: MLClient) -> None:
    create(ml, "gone")
    submit(ml, "short", "sleep 1", compute="gone")
    with pytest.raises(HttpResponseError, match=r"1 unfinished jobs \(short\)"):
        ml.compute.begin_delete("gone").result()
    completed(ml, "short")
    with pytest.raises(HttpResponseError, match="was created here, not attached"):
        ml.compute.begin_delete("gone", action="Detach").result()
    ml.compute.begin_delete("gone").result()
    for missing in (ml.compute.get, ml.compute.begin_delete, ml.compute.begin_start):
        with pytest.raises(ResourceNotFoundError):
            missing("gone")


def test_other_kinds_of_computes_are_refused_with_a_sentence(ml: MLClient) -> None:
    for compute in (
        ComputeInstance(name="instance", size="Standard_DS3_v2"),
        KubernetesCompute(name="kube", resource_id="/subscriptions/s/resourceGroups/g/providers/p/t/n", namespace="d"),
    ):
        with pytest.raises(HttpResponseError, match="are not modelled"):
            ml.compute.begin_create_or_update(compute).result()
    create(ml, "cluster")
    with pytest.raises(HttpResponseError, match="no compute instance"):
        ml.compute.begin_stop("cluster").result()


@pytest.mark.parametrize(
    ("name", "properties", "said"),
    [
        ("wrong", {}, "scaleSettings"),
        ("wrong", {"scaleSettings": {"maxNodeCount": 0}}, "at least 1"),
        ("wrong", {"scaleSettings": {"maxNodeCount": "two"}}, "at least 1"),
        ("wrong", {"scaleSettings": {"maxNodeCount": 1, "minNodeCount": 2}}, "minNodeCount"),
        ("wrong", {"scaleSettings": {"maxNodeCount": 1, "nodeIdleTimeBeforeScaleDown": "2 min"}}, "ISO 8601"),
        ("wrong", {**SCALE, "vmPriority": "Free"}, "vmPriority"),
        ("wrong_name", SCALE, "no name of a compute"),
        ("1st", SCALE, "no name of a compute"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(arm: Arm, name: str, properties: dict[str, object], said: str) -> None:
    body = {"location": "westeurope", "properties": {"computeType": "AmlCompute", "properties": properties}}
    answer = arm.call("PUT", f"computes/{name}", body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert arm.call("GET", f"computes/{name}").status_code == 404
