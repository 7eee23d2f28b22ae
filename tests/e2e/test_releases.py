"""Releases with people chatting all the while: no chat fails, and a challenger that turns out bad goes back.

The loop, the Functions host, the flow and the endpoints are the real ones; the training and the model are
tests/instant's, which answers with the id of its run, so that every answer tells who gave it.
"""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential

from tests import instant
from tests.e2e.chatters import Chat, Chatters, chatting
from tests.local_azure import LocalAzure, until

Json = dict[str, Any]
STEP, BAKE = 0.016, 0.016  # minutes: a second
RECIPE = f"release: {{step_minutes: {STEP}, bake_minutes: {BAKE}}}\n".encode()
QUESTIONS = [f"What is thing {number}?" for number in range(7)]


@pytest.fixture(scope="module")
def azure(instant_azure: LocalAzure) -> LocalAzure:
    return instant_azure


@pytest.fixture(scope="module")
def ml(azure: LocalAzure) -> MLClient:
    names = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")
    return MLClient(DefaultAzureCredential(), *(azure.environment[name] for name in names))


def release(azure: LocalAzure, model: str, name: str, **behaviour: Any) -> Json:
    """Drop a dataset and wait until its run has ended."""
    azure.drop(f"{model}/recipe.yaml", RECIPE)
    return azure.wait_for_end(model, azure.drop(f"{model}/data.jsonl", instant.dataset(name, **behaviour)), limit=60)


def moment(run: Json, reason: str) -> datetime:
    """When the line of the run's history that begins so was written."""
    return datetime.fromisoformat(next(event["at"] for event in run["history"] if event["reason"].startswith(reason)))


def answered_by(chat: Chat, runs: list[Json]) -> str:
    """The id of the run whose model gave this answer; "" when none did."""
    return next((run["id"] for run in runs if chat.answer == instant.answer(run["id"], chat.question)), "")


def at_it(azure: LocalAzure, model: str) -> Any:
    environment = azure.environment
    return chatting(environment["APP_BASE_URL"] + "/api/v1", environment["CHAT_API_KEY"], model, QUESTIONS)


def test_nobody_who_chats_notices_three_releases(azure: LocalAzure, ml: MLClient) -> None:
    runs = [release(azure, "support", "first")]
    with at_it(azure, "support") as chatters:
        until(lambda: len(chatters.chats) > 40)
        for number, name in enumerate(("second", "third", "fourth"), 1):
            # While it warms up it would answer, and says that it is not ready.
            runs.append(release(azure, "support", name, loss=0.5 - number / 100, warm_up=0.5))
        seen = len(chatters.chats)
        until(lambda: len(chatters.chats) > seen + 40)
        # The replaced deployments are deleted while the chatting goes on.
        only = {"r-" + runs[-1]["id"].rpartition("-")[2]: 100}
        endpoint = endpoint_of(azure, "support")
        until(lambda: [each.name for each in ml.online_deployments.list(endpoint)] == list(only))
        assert ml.online_endpoints.get(endpoint).traffic == only
    assert [run["stage"] for run in runs] == ["live"] * 4, [run["history"][-1]["reason"] for run in runs]
    assert Counter(chat.error for chat in chatters.chats if chat.error) == {}
    assert [chat for chat in chatters.chats if not answered_by(chat, runs)] == []
    assert {chat.client for chat in chatters.chats if chat.streamed} == {1, 3, 5, 7}
    check_shares(chatters, runs)


def check_shares(chatters: Chatters, runs: list[Json]) -> None:
    """Each release went by 10 and 50 %, both models answered meanwhile, and nobody else at any time."""
    lives = [moment(run, "all traffic goes to") for run in runs]
    lives.append(datetime.now(UTC) + timedelta(days=1))
    for before, run, live, replaced in zip(runs[:-1], runs[1:], lives[1:], lives[2:], strict=False):
        verified = datetime.fromisoformat(next(e["at"] for e in run["history"] if e["stage"] == "shifting"))
        tenth, half = moment(run, "10 % of the traffic"), moment(run, "50 % of the traffic")
        assert verified < tenth < half < moment(run, "100 % of the traffic") < live
        assert half - tenth >= timedelta(minutes=STEP)
        during = Counter(answered_by(chat, runs) for chat in chatters.since(verified, live))
        assert set(during) == {before["id"], run["id"]}
        first = [answered_by(chat, runs) for chat in chatters.since(tenth, half)]
        assert len(first) >= 20
        assert first.count(run["id"]) < len(first) / 2
        assert {answered_by(chat, runs) for chat in chatters.since(live, replaced)} >= {run["id"]}
        assert before["id"] not in {answered_by(chat, runs) for chat in chatters.since(live, lives[-1])}
        assert run["id"] not in {answered_by(chat, runs) for chat in chatters.since(lives[0], verified)}


@pytest.fixture(scope="module")
def champion(azure: LocalAzure) -> Json:
    """A model that serves, of another name than the first test's; it is verified by the one question held out."""
    messages = [{"role": "user", "content": "What is a thing?"}, {"role": "assistant", "content": "It has a number."}]
    azure.drop("orders/eval.jsonl", json.dumps({"messages": messages}).encode())
    run = release(azure, "orders", "good")
    assert run["stage"] == "live", run["history"][-1]["reason"]
    return run


def endpoint_of(azure: LocalAzure, model: str) -> str:
    live = azure.storage.get_blob_client("runs", f"live/{model}.json").download_blob().readall()
    return str(json.loads(live)["endpoint"])


def at_a_tenth(azure: LocalAzure, etag: str) -> Json:
    """The record of the run of that file once it has 10 % of the traffic."""
    return until(  # type: ignore[no-any-return]
        lambda: next((r for r in azure.records("orders") if r["dataset"]["etag"] == etag and r["share"] == 10), None)
    )


def back_at_the_champion(azure: LocalAzure, ml: MLClient, champion: Json, run: Json) -> None:
    endpoint, first, second = (
        endpoint_of(azure, "orders"),
        *("r-" + r["id"].rpartition("-")[2] for r in (champion, run)),
    )
    until(lambda: ml.online_endpoints.get(endpoint).traffic == {first: 100})
    until(lambda: [each.name for each in ml.online_deployments.list(endpoint)] == [first])
    assert second != first
    live = json.loads(azure.storage.get_blob_client("runs", "live/orders.json").download_blob().readall())
    assert live["run_id"] == champion["id"]
    kept = next(record for record in azure.records("orders") if record["id"] == champion["id"])
    assert kept["stage"] == "live"


def test_a_challenger_that_breaks_at_a_tenth_of_the_traffic_goes_back_and_nobody_who_chats_notices(
    azure: LocalAzure, ml: MLClient, champion: Json
) -> None:
    with at_it(azure, "orders") as chatters:
        # Its one good answer is the one before the traffic is shifted; then it answers 500 to everybody.
        run = release(azure, "orders", "breaks", loss=0.4, serve="broken", serve_after=1)
        assert run["stage"] == "failed"
        assert run["history"][-2]["reason"] == "10 % of the traffic"
        assert "with 10 % of the traffic the new deployment failed 3 times" in run["history"][-1]["reason"]
        back_at_the_champion(azure, ml, champion, run)
    assert len(chatters.since(moment(run, "10 % of the traffic"), moment(run, "with 10 % of the traffic"))) > 20
    assert Counter(chat.error for chat in chatters.chats if chat.error) == {}
    assert {answered_by(chat, [champion, run]) for chat in chatters.chats} == {champion["id"]}


def test_a_challenger_whose_deployment_is_lost_goes_back_and_nobody_who_chats_notices(
    azure: LocalAzure, ml: MLClient, champion: Json
) -> None:
    with at_it(azure, "orders") as chatters:
        etag = azure.drop("orders/data.jsonl", instant.dataset("lost", loss=0.4))
        run = at_a_tenth(azure, etag)
        endpoint = ml.online_endpoints.get(endpoint_of(azure, "orders"))
        # Somebody takes it away by hand.
        endpoint.traffic = {"r-" + champion["id"].rpartition("-")[2]: 100}
        ml.online_endpoints.begin_create_or_update(endpoint).result()
        ml.online_deployments.begin_delete("r-" + run["id"].rpartition("-")[2], endpoint.name).result()
        run = azure.wait_for_end("orders", etag, limit=30)
        assert run["stage"] == "failed"
        assert "the deployment was lost when it had 10 % of the traffic" in run["history"][-1]["reason"]
        back_at_the_champion(azure, ml, champion, run)
        seen = len(chatters.chats)
        until(lambda: len(chatters.chats) > seen + 20)
    assert Counter(chat.error for chat in chatters.chats if chat.error) == {}
    assert {answered_by(chat, [champion, run]) for chat in chatters.chats} >= {champion["id"]}
    assert [chat for chat in chatters.chats if not answered_by(chat, [champion, run])] == []


def test_a_message_that_cannot_be_worked_on_is_kept_and_marks_its_run(azure: LocalAzure, champion: Json) -> None:
    from azure.storage.queue import QueueServiceClient, TextBase64EncodePolicy

    service = QueueServiceClient(azure.environment["Storage__queueServiceUri"], credential=DefaultAzureCredential())
    queues = {
        name: service.get_queue_client(name, message_encode_policy=TextBase64EncodePolicy())
        for name in ("runs", "runs-poison")
    }
    queues["runs"].send_message("nothing that the app has sent")
    queues["runs-poison"].send_message(json.dumps({"run_id": champion["id"]}))
    runs = azure.storage.get_container_client("runs")
    names = until(lambda: n if len(n := list(runs.list_blob_names(name_starts_with="poison/"))) == 2 else None)
    kept = {found["run_id"]: found for found in (json.loads(runs.download_blob(name).readall()) for name in names)}
    assert kept[""]["message"] == "nothing that the app has sent"
    assert json.loads(kept[champion["id"]]["message"]) == {"run_id": champion["id"]}
    marked = until(lambda: next((r for r in azure.records("orders") if r["links"].get("poison")), None))
    assert marked["id"] == champion["id"]
    assert any(marked["links"]["poison"] in name for name in names)


def operate(azure: LocalAzure, method: str, path: str, body: Json | None = None) -> requests.Response:
    """A request of an operator to the operations API."""
    environment = azure.environment
    key = {"Authorization": f"Bearer {environment['OPERATOR_API_KEY']}"}
    url = f"{environment['APP_BASE_URL']}/api/operations/{path}"
    return requests.request(method, url, json=body, headers=key, timeout=60)


def record_of(azure: LocalAzure, id: str) -> Json:
    return json.loads(azure.storage.get_blob_client("runs", f"{id}.json").download_blob().readall())  # type: ignore[no-any-return]


def test_a_kept_message_is_listed_and_sent_again(azure: LocalAzure, champion: Json) -> None:
    listed = operate(azure, "GET", "poison").json()["poison"]
    (kept,) = (each for each in listed if each["run_id"] == champion["id"])
    assert operate(azure, "POST", f"poison/{kept['name']}/replay").status_code == 202
    assert kept["name"] not in [each["name"] for each in operate(azure, "GET", "poison").json()["poison"]]
    assert "poison" not in record_of(azure, champion["id"])["links"]


def test_a_rollback_in_one_call_is_noticed_by_nobody_who_chats_and_a_retired_model_keeps_its_versions(
    azure: LocalAzure, ml: MLClient, champion: Json
) -> None:
    newer = release(azure, "orders", "newer", loss=0.4)
    assert newer["stage"] == "live", newer["history"][-1]["reason"]
    endpoint = endpoint_of(azure, "orders")
    first, second = ("r-" + each["id"].rpartition("-")[2] for each in (champion, newer))
    until(lambda: [each.name for each in ml.online_deployments.list(endpoint)] == [second])  # its bake time is over
    with at_it(azure, "orders") as chatters:
        asked = [operate(azure, "POST", "models/orders/rollback", {"note": "odd answers"}) for _ in range(2)]
        assert [each.status_code for each in asked] == [202, 202]
        (back,) = {each.json()["run"]["id"] for each in asked}  # asking twice is asking once
        until(lambda: record_of(azure, back)["stage"] == "live")
        seen = len(chatters.chats)
        until(lambda: len(chatters.chats) > seen + 40)
    assert Counter(chat.error for chat in chatters.chats if chat.error) == {}
    assert [chat for chat in chatters.chats if not answered_by(chat, [champion, newer])] == []
    assert {answered_by(chat, [champion, newer]) for chat in chatters.chats[-20:]} == {champion["id"]}
    assert record_of(azure, newer["id"])["stage"] == "retired"
    versions = sorted(str(each.version) for each in ml.models.list(name="orders"))
    assert operate(azure, "POST", "models/orders/retire").status_code == 202
    until(lambda: endpoint not in [each.name for each in ml.online_endpoints.list()])
    assert not azure.exists("runs", "live/orders.json")
    until(lambda: operate(azure, "POST", "models/orders/retire").status_code == 200)
    assert sorted(str(each.version) for each in ml.models.list(name="orders")) == versions
    assert first != second
