"""The engine ``service`` from the drop to the chat: fine-tuning as a service, a serverless endpoint, its key."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from azure.ai.ml import MLClient
from azure.core.exceptions import ResourceNotFoundError
from online import create_endpoint, deploy, echo_deployment, set_traffic
from openai import OpenAI

from function_app import release, release_managed
from function_app.engines import service
from function_app.errors import StepError, TransientError, UserError
from function_app.recipe import Recipe
from function_app.runs import DatasetVersion, Run, new_run, utc_now
from tests.local_azure import LocalAzure, elsewhere, forget_clients, local_azure

REGISTRY = "azureml://registries/azureml/models"
RECIPE = f"""
engine: service
base_model: {REGISTRY}/Phi-4-mini-instruct
gate: {{rule: always}}
training: {{epochs: 10, learning_rate: 0.003, batch_size: 4}}
evaluation: {{holdout: 0.2}}
release: {{bake_minutes: 0}}
"""


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    """This project's local Azure, but in a region where the service is."""
    folder = tmp_path_factory.mktemp("project")
    with local_azure(folder / "home", project=elsewhere(folder, location="eastus2")) as running:
        forget_clients()
        yield running
    forget_clients()
    shutil.rmtree(folder, ignore_errors=True)


def records(answer: str) -> bytes:
    """Twenty short chats, with one answer that the tiny model learns in a moment."""
    return b"".join(
        json.dumps(
            {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": answer}]}
        ).encode()
        + b"\n"
        for n in range(20)
    )


@pytest.fixture(scope="module")
def live(azure: LocalAzure) -> dict[str, Any]:
    """The record of a run that the service has trained."""
    azure.drop("helper/recipe.yaml", RECIPE.encode())
    record = azure.wait_for_end("helper", azure.drop("helper/first.jsonl", records("Yes, we are.")))
    assert record["stage"] == "live", record["history"][-1]["reason"]
    return record


def chat(azure: LocalAzure, stream: bool = False) -> str:
    client = OpenAI(
        base_url=azure.environment["APP_BASE_URL"] + "/api/v1",
        api_key=azure.environment["CHAT_API_KEY"],
        max_retries=0,
    )
    asked: Any = [{"role": "user", "content": "Question 1?"}]
    if stream:
        chunks = client.chat.completions.create(model="helper", messages=asked, max_tokens=8, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return client.chat.completions.create(model="helper", messages=asked, max_tokens=8).choices[0].message.content or ""


def live_record(azure: LocalAzure) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        azure.storage.get_blob_client("runs", "live/helper.json").download_blob().readall()
    )
    return found


def test_a_drop_is_tuned_by_the_service_and_answers_behind_its_key(
    azure: LocalAzure, ml: MLClient, live: dict[str, Any]
) -> None:
    job = ml.jobs.get(live["id"])
    assert job.hyperparameters == {
        "num_train_epochs": "10",
        "learning_rate": "0.003",
        "per_device_train_batch_size": "4",
    }
    assert job.properties["azureml.ModelName"] == "Phi-4-mini-instruct"
    assert job.validation_data is not None
    assert ml.models.get(live["id"], "1").tags["dataset"] == "helper/first.jsonl"
    assert live["numbers"]["eval"]["tuned"]["loss"] > 0
    assert live["numbers"]["samples"][0]["expected"] == "Yes, we are."
    reasons = {event["stage"]: event["reason"] for event in live["history"]}
    assert reasons["registered"] == f"model {live['id']}, version 1"
    assert reasons["live"] == f"all traffic goes to serverless endpoint {live['id']}"
    written = live_record(azure)
    assert (written["auth"], written["endpoint"], written["model_version"]) == ("key", live["id"], "1")
    assert written["scoring_uri"].endswith("/v1/chat/completions")
    chat(azure)
    chat(azure, stream=True)
    key = ml.serverless_endpoints.get_keys(live["id"]).primary_key
    assert key not in json.dumps([written, *azure.records("helper")])
    for log in (azure.home / "logs").glob("*.log"):
        assert key not in log.read_text(errors="replace"), log.name


def test_a_key_that_is_replaced_is_asked_for_again(azure: LocalAzure, ml: MLClient, live: dict[str, Any]) -> None:
    chat(azure)
    where = (azure.environment["AZURE_RESOURCE_GROUP"], azure.environment["AZURE_ML_WORKSPACE"], live["id"])
    generated = ml._service_client_01_2024_preview_arm.serverless_endpoints
    body = {"keyType": "Primary", "keyValue": ml.serverless_endpoints.get_keys(live["id"]).primary_key}
    generated.begin_regenerate_keys(*where, body, content_type="application/json").result()
    chat(azure)


def test_the_next_drop_replaces_the_endpoint_and_what_will_not_serve_is_discarded(
    azure: LocalAzure, ml: MLClient, live: dict[str, Any]
) -> None:
    chat(azure)  # so that the app remembers the first endpoint
    second = azure.drop("helper/second.jsonl", records("No, not today."))
    unwanted = run_of("unwanted")
    unwanted.numbers["model_uri"] = f"azureml:{live['id']}:1"
    release.create_endpoint(unwanted)
    assert release.observe_endpoint(unwanted)[0] == "Creating"
    assert not release.discarded(unwanted)  # 409 until it has been created
    record = azure.wait_for_end("helper", second)
    assert record["stage"] == "live", record["history"][-1]["reason"]
    assert live_record(azure)["endpoint"] == record["id"]
    chat(azure)
    assert next(r for r in azure.records("helper") if r["id"] == live["id"])["stage"] == "retired"
    wait_until(lambda: release.discarded(unwanted))
    assert release.observe_endpoint(unwanted) == ("", {})
    assert release.observe_deployment(unwanted) is None
    champion = run_of("helper")
    champion.id = record["id"]
    assert release.discarded(champion), "it serves, so there is nothing left to discard"
    wait_until(lambda: [endpoint.name for endpoint in ml.serverless_endpoints.list()] == [record["id"]])
    chat(azure)


def run_of(model: str, **recipe: Any) -> Run:
    now = utc_now()
    run = new_run(model, DatasetVersion(f"{model}/data.jsonl", "0x1", 10, now), now)
    run.recipe = {"engine": "service", **recipe}
    run.numbers = {"dataset": {"train": 8, "eval": 0, "format": "chat"}, "splits": {"train": {"bytes": 10}}}
    return run


def recipe_of(base: str = f"{REGISTRY}/Phi-4-mini-instruct", rule: str = "always", epochs: float = 1) -> Recipe:
    fields = {"engine": "service", "base_model": base, "gate": {"rule": rule}, "training": {"epochs": epochs}}
    return msgspec.convert(fields, Recipe)


@pytest.mark.parametrize(
    ("recipe", "dataset", "said"),
    [
        (recipe_of("embedded"), {}, "trains models of a registry only, not `base_model: embedded`"),
        (recipe_of(rule="better_than_base"), {}, "nothing could pass `gate.rule: better_than_base`"),
        (recipe_of(epochs=1.5), {}, "takes whole epochs, not 1.5"),
        (recipe_of(), {"format": "text"}, "not on texts: use engine command"),
        (recipe_of(f"{REGISTRY}/Phi-0"), {}, "there is no Phi-0 in the registry azureml"),
        (recipe_of(f"{REGISTRY}/Phi-4-mini-instruct/versions/99"), {}, "there is no Phi-4-mini-instruct in version 99"),
    ],
)
def test_what_the_service_cannot_do_is_said_before_anything_is_submitted(
    azure: LocalAzure, recipe: Recipe, dataset: dict[str, Any], said: str
) -> None:
    run = run_of("helper")
    run.numbers["dataset"] |= dataset
    with pytest.raises(UserError, match=re.escape(said)):
        service.check(run, recipe)


def test_a_region_a_model_without_an_offer_and_one_to_buy_are_refused(
    azure: LocalAzure, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = {"Phi-3-mini-4k-instruct": service.Offer(["westus3", "eastus"]), "Phi-4": service.Offer(["eastus2"], True)}
    monkeypatch.setattr(service, "_offers", lambda: offers)
    for name, said in (
        ("Phi-3-mini-4k-instruct", "in westus3, eastus only, and the workspace is in eastus2"),
        ("Phi-3.5-mini-instruct", "not known to train Phi-3.5-mini-instruct; it trains Phi-3-mini-4k-instruct, Phi-4"),
        ("Phi-4", "the workspace has no subscription to it"),
    ):
        if name == "Phi-4":  # not in the local registry
            with pytest.raises(UserError, match=said):
                service._check_offer(f"{REGISTRY}/Phi-4/versions/1", "East US 2")
            continue
        with pytest.raises(UserError, match=said):
            service.check(run_of("helper"), recipe_of(f"{REGISTRY}/{name}"))


def test_without_held_out_records_the_service_splits_by_itself(azure: LocalAzure, ml: MLClient) -> None:
    run = run_of("splitless")
    for name in ("train.jsonl", "eval.jsonl"):
        content = records("Yes.") if name == "train.jsonl" else b""
        azure.storage.get_blob_client("runs", f"{run.id}/{name}").upload_blob(content)
    assert service.submit(run, recipe_of())
    assert service.submit(run, recipe_of()), "a second submission is not the first one's"
    job = ml.jobs.get(run.id)
    assert (job.validation_data, job.hyperparameters) == (None, {"num_train_epochs": "1"})
    assert job.tags["dataset"] == "splitless/data.jsonl"
    wait_until(lambda: service.stopped(run))
    assert service._samples(run) == []


def test_a_managed_champion_is_taken_down_when_the_service_takes_over(azure: LocalAzure, ml: MLClient) -> None:
    name = release_managed._endpoint("helper")
    create_endpoint(ml, name)
    for deployment in ("r-0", "r-1"):
        deploy(ml, echo_deployment(azure, ml, name, deployment, tags={"run_id": f"helper-{deployment}"}))
    set_traffic(ml, name, {"r-0": 100})
    served = run_of("helper")
    first, second = release.Place("managed", "r-0"), release.Place("managed", "r-1")
    others = release.other_deployments(served)
    assert (others[first], others[second]) == ("helper-r-0", "helper-r-1")
    with pytest.raises(TransientError, match="traffic"):
        release.delete_deployment(served, first)
    wait_until(lambda: ml.online_endpoints.get(name).provisioning_state == "Succeeded")
    release.delete_deployment(served, first)
    wait_until(lambda: list(release_managed.deployments("helper")) == ["r-1"])
    release.delete_deployment(served, second)
    wait_until(lambda: release_managed.deployments("helper") == {})
    with pytest.raises(ResourceNotFoundError):
        ml.online_endpoints.get(name)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_model_that_was_deleted_ends_the_run(azure: LocalAzure) -> None:
    run = run_of("helper")
    run.numbers["model_uri"] = "azureml:helper-none:1"
    with pytest.raises(StepError, match="helper-none, version 1, that the service registered is gone"):
        release.register(run)
