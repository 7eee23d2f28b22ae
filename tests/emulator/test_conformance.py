"""The oracle itself, and that it has judged an answer of every operation that the coverage table lists.

The latter runs last (conftest.py sees to it), over what the SDK was told in all tests of this folder.
"""

from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml._restclient.arm_ml_service import models

import emulator.control  # noqa: F401 - importing registers all routes
from emulator.arm.routing import ROUTES, Coverage
from tests.emulator.conformance import Oracle, violations

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


@pytest.mark.last
def test_an_answer_of_every_operation_was_judged(
    judged: set[tuple[str, str, int]], request: pytest.FixtureRequest
) -> None:
    files = {Path(item.path).name for item in request.session.items}
    missing = {path.name for path in Path(__file__).parent.glob("test_*.py")} - files
    if missing:
        pytest.skip(f"only the whole of tests/emulator shows this; not run: {', '.join(sorted(missing))}")
    unseen = [
        f"{route.method} {route.template} ({route.operation})"
        for route in ROUTES
        if not any(
            method == route.method
            and route.pattern.fullmatch(path)
            and (status < 400 or route.coverage == Coverage.REFUSED)
            for method, path, status in judged
        )
    ]
    assert not unseen, "no test of tests/emulator gets an answer through the SDK from:\n" + "\n".join(unseen)
