"""The oracle itself, and that it has judged an answer of every operation that the coverage table lists.

The latter runs last (conftest.py sees to it), over what the SDK was told in all tests of this folder.
"""

import json
import os
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml._restclient.arm_ml_service import MachineLearningServicesMgmtClient, models
from azure.ai.ml.entities import AmlCompute
from azure.core.exceptions import HttpResponseError

import emulator.control  # noqa: F401 - importing registers all routes
from emulator.arm.routing import ROUTES, Coverage
from tests.emulator.conformance import Oracle, violations
from tests.local_azure import LocalAzure


@pytest.fixture(scope="module")
def generated(ml: MLClient) -> MachineLearningServicesMgmtClient:
    """The generated client of Resource Manager that the SDK is built on, for operations that only it calls."""
    return ml._service_client_01_2024_preview_arm


JOB: dict[str, Any] = {
    "id": "/subscriptions/s/jobs/j",
    "name": "j",
    "type": "Microsoft.MachineLearningServices/workspaces/jobs",
    "properties": {
        "jobType": "Command",
        "command": "true",
        "environmentId": "e",
        "status": "Completed",
        "limits": {"jobLimitsType": "Command", "timeout": "PT1H"},
        "tags": {"a": "b"},
    },
    "systemData": {"createdAt": "2026-11-21T00:00:00.000000Z"},
}


def changed(**properties: Any) -> dict[str, Any]:
    return {**JOB, "properties": {**JOB["properties"], **properties}}


def test_a_job_as_azure_shows_it_conforms() -> None:
    assert list(violations(models.JobBase, JOB)) == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (changed(colour="red"), "$.properties.colour: CommandJob has no such field"),
        ({**JOB, "owner": "me"}, "$.owner: JobBase has no such field"),
        (changed(status="Done"), '$.properties.status: "Done" is no JobStatus'),
        (changed(command=None), "$.properties.command: null, but str is required"),
        (changed(jobType="Magic"), '$.properties: jobType "Magic" is none of'),
        (changed(tags={"a": 1}), "$.properties.tags.a: 1 is no str"),
        (
            changed(limits={"jobLimitsType": "Command", "timeout": "1h"}),
            '$.properties.limits.timeout: "1h" is no timedelta',
        ),
        (changed(limits={"timeout": "PT1H"}), "$.properties.limits.jobLimitsType: missing"),
        (changed(inputs=[]), "$.properties.inputs: [] is no object"),
        ({**JOB, "systemData": {"createdAt": "yesterday"}}, '$.systemData.createdAt: "yesterday" is no datetime'),
        (
            {key: value for key, value in JOB.items() if key != "properties"},
            "$.properties: missing, but JobBase requires it",
        ),
    ],
)
def test_what_azure_could_not_have_said_is_found(body: dict[str, Any], found: str) -> None:
    assert [violation for violation in violations(models.JobBase, body) if violation.startswith(found)]


def test_an_error_without_azure_s_envelope_is_found() -> None:
    oracle = Oracle()
    oracle.answered("GET", "https://localhost:1/subscriptions/s", 404, {}, b'{"detail": "not here"}')
    assert oracle.violations


@pytest.mark.parametrize(
    ("operation", "arguments", "refusal"),
    [
        ("compute.begin_restart", ["cluster"], "is no compute instance"),
        ("marketplace_subscriptions.get", ["phi"], "does not exist"),
        (
            "marketplace_subscriptions.begin_create_or_update",
            ["phi", {"properties": {"modelId": "m"}}],
            "needs no marketplace subscription",
        ),
        ("workspaces.begin_delete", [], "emulator.yaml names"),
    ],
)
def test_what_only_the_generated_client_calls_is_refused_with_a_sentence(
    azure: LocalAzure,
    ml: MLClient,
    generated: MachineLearningServicesMgmtClient,
    operation: str,
    arguments: list[Any],
    refusal: str,
) -> None:
    ml.compute.begin_create_or_update(AmlCompute(name="cluster", size="Standard_DS3_v2", max_instances=1)).result()
    call = attrgetter(operation)(generated)
    with pytest.raises(HttpResponseError, match=refusal):
        call(azure.environment["AZURE_RESOURCE_GROUP"], azure.environment["AZURE_ML_WORKSPACE"], *arguments)


def test_a_cluster_s_scale_is_patched(
    azure: LocalAzure, ml: MLClient, generated: MachineLearningServicesMgmtClient
) -> None:
    ml.compute.begin_create_or_update(AmlCompute(name="cluster", size="Standard_DS3_v2", max_instances=1)).result()
    where = (azure.environment["AZURE_RESOURCE_GROUP"], azure.environment["AZURE_ML_WORKSPACE"], "cluster")
    scale = {"properties": {"properties": {"scaleSettings": {"maxNodeCount": 3}}}}
    generated.compute.begin_update(*where, scale).result()
    assert ml.compute.get("cluster").max_instances == 3


@pytest.mark.last
def test_an_answer_of_every_operation_was_judged(
    judged: set[tuple[str, str, int]], request: pytest.FixtureRequest
) -> None:
    files = {Path(item.path).name for item in request.session.items}
    for path in Path(os.environ["JUDGED"]).glob("*.json") if "JUDGED" in os.environ else ():
        other = json.loads(path.read_text())
        files |= set(other["files"])
        judged |= {(method, path, status) for method, path, status in other["seen"]}
    missing = {path.name for path in Path(__file__).parent.glob("test_*.py")} - files
    if missing:
        pytest.skip(f"only the whole of tests/emulator shows this; not run: {', '.join(sorted(missing))}")
    unseen = [
        f"{route.method} {route.template} ({route.operation})"
        for route in ROUTES
        if not route.operation.startswith("emulator:")  # the SDK knows nothing of those
        and not any(
            method == route.method
            and route.pattern.fullmatch(path)
            and (status < 400 or route.coverage == Coverage.REFUSED)
            for method, path, status in judged
        )
    ]
    assert not unseen, "no test of tests/emulator gets an answer through the SDK from:\n" + "\n".join(unseen)
