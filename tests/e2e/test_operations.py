"""The operations API of the running app: approved, cancelled, taken up again, rolled back, retired, over HTTP.

The local Azure with its real Functions host; trainings and deployments take milliseconds (tests/instant).
"""

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.instant import dataset
from tests.local_azure import LocalAzure, until

RECIPE = "gate: {{rule: {rule}}}\nrelease: {{step_minutes: 0, bake_minutes: {bake}}}\n"


class Operator:
    """Somebody with an operator's key."""

    def __init__(self, azure: LocalAzure) -> None:
        self._azure = azure

    def ask(self, method: str, path: str, **body: str) -> tuple[int, Any]:
        """Status and content of the answer."""
        request = urllib.request.Request(  # noqa: S310
            f"{self._azure.environment['APP_BASE_URL']}/api/{path}",
            method=method,
            data=json.dumps(body).encode() if method == "POST" else None,
            headers={"Authorization": f"Bearer {self._azure.environment['OPERATOR_API_KEY']}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def get(self, path: str) -> Any:
        status, content = self.ask("GET", f"operations/{path}")
        assert status == 200, content
        return content

    def post(self, path: str, **body: str) -> tuple[int, Any]:
        return self.ask("POST", f"operations/{path}", **body)

    def drop(self, model: str, content: bytes, rule: str = "always", bake: float = 10) -> str:
        """Drop a dataset; the id of its run."""
        known = {each["id"] for each in self.get(f"runs?model={model}")["runs"]}
        self._azure.drop(f"{model}/recipe.yaml", RECIPE.format(rule=rule, bake=bake).encode())
        self._azure.drop(f"{model}/data.jsonl", content)
        for _ in range(600):
            if found := {each["id"] for each in self.get(f"runs?model={model}")["runs"]} - known:
                return str(found.pop())
            time.sleep(0.1)
        raise AssertionError(self._azure.log("functions")[-2000:])

    def wait(self, id: str, stage: str) -> dict[str, Any]:
        """The run once it is at the stage."""
        for _ in range(900):
            run = self.get(f"runs/{id}")
            if run["stage"] == stage:
                return dict(run)
            assert run["stage"] not in {"failed", "rejected"}, run["reason"]
            time.sleep(0.1)
        raise AssertionError(f"{run['history']}\n{self._azure.log('functions')[-2000:]}")

    def answer(self, model: str) -> str:
        """Whose model answers a chat."""
        request = urllib.request.Request(  # noqa: S310
            f"{self._azure.environment['APP_BASE_URL']}/api/v1/chat/completions",
            data=json.dumps({"model": model, "messages": [{"role": "user", "content": "Who?"}]}).encode(),
            headers={"Authorization": f"Bearer {self._azure.environment['CHAT_API_KEY']}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answered:  # noqa: S310
            return str(json.load(answered)["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def operator(instant_azure: LocalAzure) -> Operator:
    return Operator(instant_azure)


def test_from_an_approval_to_a_rollback_a_retirement_and_back(operator: Operator) -> None:
    first = operator.drop("helpdesk", dataset("one"), rule="manual")
    assert operator.wait(first, "trained")["may"] == ["approve", "reject", "cancel"]
    with ThreadPoolExecutor(4) as people:
        approvals = people.map(lambda _: operator.post(f"runs/{first}/approve", note="read the answers"), range(4))
        assert {status for status, _ in approvals} <= {200, 202}
    reasons = [event["reason"] for event in operator.wait(first, "live")["history"]]
    assert sum("approved by local: read the answers" in reason for reason in reasons) == 1
    second = operator.drop("helpdesk", dataset("two"))
    operator.wait(second, "live")
    assert second in operator.answer("helpdesk")

    # The first one's deployment is still there, and takes over as it is.
    with ThreadPoolExecutor(4) as people:
        answers = list(people.map(lambda _: operator.post("models/helpdesk/rollback", note="it is rude"), range(4)))
    assert {status for status, _ in answers} == {202}
    ((back, deployment),) = {(content["run"]["id"], content["run"]["deployment"]) for _, content in answers}
    assert deployment == f"r-{first[-12:]}"
    assert [event["stage"] for event in operator.wait(back, "live")["history"]][:3] == [
        "approved", "registered", "deploying",
    ]  # fmt: skip
    assert first in operator.answer("helpdesk")
    model = operator.get("models/helpdesk")
    assert model["live"]["run_id"] == back
    assert {each["run_id"] for each in model["versions"]} == {first, second}  # a rollback registers nothing
    serving, newer = model["live"]["model_version"], max(each["version"] for each in model["versions"])
    assert {(each["version"], each["share"]) for each in model["deployments"]} == {(serving, 100), (newer, 0)}

    # What is deployed cannot be deleted; the endpoint can, and the model comes back.
    for version in (serving, newer):
        assert operator.ask("DELETE", f"operations/models/helpdesk/versions/{version}")[0] == 409
    until(lambda: operator.post("models/helpdesk/retire")[0] == 200)
    assert operator.get(f"runs/{back}")["stage"] == "retired"
    model = operator.get("models/helpdesk")
    assert (model["live"], model["deployments"]) == (None, [])
    assert operator.ask("DELETE", f"operations/models/helpdesk/versions/{newer}")[0] == 200
    assert [each["version"] for each in operator.get("models/helpdesk")["versions"]] == [serving]
    assert operator.post("models/helpdesk/rollback", version=newer)[1]["error"]["code"] == "archived"
    again = operator.post("models/helpdesk/rollback")[1]["run"]["id"]
    operator.wait(again, "live")
    assert first in operator.answer("helpdesk")


def test_a_run_that_was_cancelled_in_its_training_is_taken_up_again_with_a_new_job(operator: Operator) -> None:
    id = operator.drop("slow", dataset("slow", seconds=2))
    operator.wait(id, "training")
    assert operator.post(f"runs/{id}/cancel")[0] == 202
    operator.wait(id, "cancelled")
    assert operator.post(f"runs/{id}/retry")[0] == 202
    # By the event of the second job: it is asked for its end only every five minutes.
    run = operator.wait(id, "live")
    assert run["job"] == f"{id}-1"
    assert run["numbers"]["model_uri"] == f"azureml://jobs/{id}-1/outputs/model"
    assert f"{id}-1" in operator.answer("slow")
