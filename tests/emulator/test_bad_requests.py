"""Requests that no SDK sends: each is refused with Azure's error, and none spoils what others ask for later."""

from typing import Any

import pytest
import requests
from azure.ai.ml import MLClient

from tests.emulator.job_helpers import Arm, Json, completed
from tests.local_azure import LocalAzure

CLUSTER = {"vmSize": "Standard_DS3_v2", "scaleSettings": {"maxNodeCount": 1}}
BLOBS = {"datastoreType": "AzureBlob", "accountName": "other", "containerName": "some"}
MODEL = "azureml://datastores/workspaceblobstore/paths/m"


@pytest.fixture(scope="module")
def arm(azure: LocalAzure) -> Arm:
    arm = Arm(azure)
    assert arm.call("PUT", "computes/cpu", _cluster(CLUSTER)).status_code == 201
    return arm


def _cluster(inner: Any) -> Json:
    return {"location": "westeurope", "properties": {"computeType": "AmlCompute", "properties": inner}}


def _said(answer: requests.Response) -> str:
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested deeper"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested deeper"),
        ('"\\ud800"', "not valid JSON"),
        ("NaN", "not valid JSON"),
        ("1e999", "not valid JSON"),
    ],
)
def test_json_that_could_not_be_answered_again_is_not_stored(arm: Arm, text: str, said: str) -> None:
    flavors = f'{{"f": {{"data": {{"a": {text}}}}}}}'
    body = f'{{"properties": {{"modelUri": "{MODEL}", "flavors": {flavors}}}}}'
    url = f"{arm.url}{arm.workspace}/models/unanswerable/versions/1?api-version=2024-10-01"
    assert said in _said(requests.put(url, data=body.encode(), headers=arm.headers, timeout=30))
    assert arm.call("GET", "models").status_code == 200
    assert arm.call("GET", "models/unanswerable").status_code == 404


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"computeId": 5}, "compute"),
        ({"computeId": "{workspace}/environments/e/versions/1"}, "compute"),
        ({"codeId": ["x"]}, "code"),
        ({"environmentId": "{workspace}/computes/cpu"}, "environment"),
        ({"outputs": [1]}, "'outputs'"),
        ({"properties": []}, "'properties'"),
        ({"services": {"s": None}}, "services"),
        ({"resources": {"properties": "x"}}, "resources.properties"),
        ({"experimentName": ""}, "experimentName"),
        ({"experimentName": "x" * 2000}, "experimentName"),
        ({"parentJobName": "bad"}, "parentJobName"),
        ({"parentJobName": {"a": 1}}, "parentJobName"),
        ({"outputs": {"o": {"jobOutputType": "uri_folder", "uri": "https://[bad/x"}}}, "no URI"),
    ],
)
def test_a_job_with_wrong_types_is_refused(arm: Arm, given: Json, said: str) -> None:
    image = {"properties": {"image": "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest"}}
    assert arm.call("PUT", "environments/e/versions/1", image).status_code == 201
    filled = {k: v.format(workspace=arm.workspace) if isinstance(v, str) else v for k, v in given.items()}
    assert said in _said(arm.submit("bad", "true", **filled))
    assert arm.call("GET", "jobs/bad").status_code == 404


def test_a_change_of_a_job_with_wrong_types_is_refused(arm: Arm) -> None:
    assert arm.submit("changed", "true").status_code == 201
    for given in ({"inputs": 5}, {"outputs": [{"a": 1}]}, {"resources": "x"}):
        _said(arm.submit("changed", "true", **given))


@pytest.mark.parametrize(
    "inner",
    [
        "x",
        {**CLUSTER, "vmSize": 5},
        {**CLUSTER, "userAccountCredentials": "x"},
    ],
)
def test_a_cluster_with_wrong_types_is_refused(arm: Arm, inner: Any) -> None:
    _said(arm.call("PUT", "computes/bad", _cluster(inner)))
    usages = (
        f"{arm.workspace.split('/resourceGroups')[0]}/providers/Microsoft.MachineLearningServices/locations/l/usages"
    )
    assert arm.call("GET", usages).status_code == 200
    _said(arm.call("PATCH", "computes/cpu", {"properties": {"properties": "x"}}))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("bad", {**BLOBS, "credentials": "x"}, "credentials"),
        ("bad", {**BLOBS, "containerName": 5}, "containerName"),
        ("bad", {**BLOBS, "accountName": "{account}", "containerName": "Bad_Name!"}, "no name of a container"),
        ("workspaceblobstore", BLOBS, "cannot lead elsewhere"),
    ],
)
def test_a_datastore_that_cannot_be_is_refused(arm: Arm, name: str, given: Json, said: str) -> None:
    own = arm.call("GET", "datastores/workspaceblobstore").json()["properties"]
    account = {"accountName": given["accountName"].replace("{account}", own["accountName"])}
    assert said in _said(arm.call("PUT", f"datastores/{name}", {"properties": {**given, **account}}))
    assert arm.call("GET", "datastores/workspaceblobstore").json()["properties"] == own


def test_no_client_makes_a_second_default_datastore(arm: Arm) -> None:
    assert arm.call("PUT", "datastores/second", {"properties": {**BLOBS, "isDefault": True}}).status_code == 201
    found = arm.call("GET", "datastores", isDefault="true").json()["value"]
    assert [store["name"] for store in found] == ["workspaceblobstore"]


def test_a_datastore_of_other_storage_than_blobs_is_no_place_for_a_job(arm: Arm) -> None:
    account = arm.call("GET", "datastores/workspaceblobstore").json()["properties"]["accountName"]
    gen2 = {"datastoreType": "AzureDataLakeGen2", "accountName": account, "filesystem": "f"}
    assert arm.call("PUT", "datastores/gen2", {"properties": gen2}).status_code == 201
    output = {"jobOutputType": "uri_folder", "uri": "azureml://datastores/gen2/paths/x"}
    assert "not of blobs" in _said(arm.submit("gen2", "true", outputs={"o": output}))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "{workspace}", {"properties": "x"}),
        ("PUT", "codes/c/versions/1", {"properties": {"codeUri": "https://[bad/x"}}),
        ("PUT", "components/c/versions/1", {"properties": {"componentSpec": {"type": "command", "resources": "x"}}}),
        ("POST", "/history/v1.0{workspace}/rundata", {"runId": ""}),
        ("GET", "jobs?tag=a%00b", None),
    ],
)
def test_what_else_is_wrong_is_refused(arm: Arm, method: str, path: str, body: Json | None) -> None:
    _said(arm.call(method, path.format(workspace=arm.workspace), body))


def test_a_conda_file_that_would_take_minutes_to_read_is_refused_at_once(arm: Arm) -> None:
    deep = {"properties": {"image": "i", "condaFile": "[" * 20_000}}
    assert "nested deeper" in _said(arm.call("PUT", "environments/d/versions/1", deep))


@pytest.mark.parametrize("query", [{"$continuationtoken": "9" * 20}, {"$top": "9" * 5000}, {"$top": "0"}])
def test_children_are_not_paged_by_numbers_that_are_none(arm: Arm, query: dict[str, str]) -> None:
    assert arm.submit("childless", "true").status_code in (200, 201)
    _said(arm.call("GET", f"/history/v1.0{arm.workspace}/runs/childless/children", **query))


def test_no_signature_of_an_address_comes_into_the_log(azure: LocalAzure, arm: Arm) -> None:
    output = {"jobOutputType": "uri_folder", "uri": "https://other.example/x?sig=SECRET"}
    assert "SECRET" in _said(arm.submit("signed", "true", outputs={"o": output}))  # who sent it may see it
    log = (azure.home / "logs" / "control.log").read_text()
    assert "other.example" in log
    assert "SECRET" not in log


def test_a_variable_without_a_value_is_left_out(ml: MLClient, arm: Arm) -> None:
    assert arm.submit("variables", 'test -z "${EMPTY+set}"', environmentVariables={"EMPTY": None}).status_code == 201
    completed(ml, "variables")
