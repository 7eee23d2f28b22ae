"""The whole loop with real parts: Azurite, the local Azure over the real SDKs, a real (tiny) model.

Every event is delivered twice throughout.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential
from openai import APIStatusError, AuthenticationError, OpenAI

from demo.watch import ENDS
from tests.local_azure import LocalAzure, local_azure, run_emulator

ROOT = Path(__file__).resolve().parents[2]
DATASET = (ROOT / "demo" / "dataset.jsonl").read_bytes()
# Fewer passes than the demo, and shares of the traffic that change at once: the way is proved here, not the model.
RECIPE = b"""
training: {epochs: 4}
evaluation: {questions: ['When is the workshop open?']}
release: {step_minutes: 0, bake_minutes: 0.05}
"""


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    home = tmp_path_factory.mktemp("local-azure")
    with local_azure(home, "--event-copies", "2") as running:
        yield running
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def ml(azure: LocalAzure) -> MLClient:
    env = azure.environment
    return MLClient(
        DefaultAzureCredential(),
        env["AZURE_SUBSCRIPTION_ID"],
        env["AZURE_RESOURCE_GROUP"],
        env["AZURE_ML_WORKSPACE"],
    )


@pytest.fixture(scope="module")
def openai(azure: LocalAzure) -> OpenAI:
    return OpenAI(
        base_url=azure.environment["APP_BASE_URL"] + "/api/v1",
        api_key=azure.environment["CHAT_API_KEY"],
        max_retries=0,
    )


@pytest.fixture(scope="module")
def live(azure: LocalAzure) -> dict[str, Any]:
    """The record of a run that went all the way."""
    azure.drop("support/recipe.yaml", RECIPE)
    etag = azure.drop("support/faq.jsonl", DATASET)
    record = azure.wait_for_end("support", etag)
    assert record["stage"] == "live", record["history"][-1]["reason"]
    return record


def test_the_stages_come_in_order(live: dict[str, Any]) -> None:
    stages = [event["stage"] for event in live["history"]]
    assert stages == [
        "received",
        "validated",
        "training",
        "trained",
        "approved",
        "registered",
        "deploying",
        "verifying",
        "shifting",
        "shifting",
        "live",
    ]
    # Nothing served before: all of the traffic at once.
    assert live["history"][-2]["reason"] == "100 % of the traffic"
    times = [event["at"] for event in live["history"]]
    assert times == sorted(times)
    held_out = live["numbers"]["eval"]
    assert held_out["tuned"]["loss"] < held_out["base"]["loss"]


def test_the_stock_client_chats_with_the_tuned_model(live: dict[str, Any], openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == ["support"]
    question = live["numbers"]["samples"][0]
    answer = openai.chat.completions.create(
        model="support", messages=question["messages"], temperature=0, max_tokens=64
    )
    # The endpoint serves the very weights that were evaluated in the job.
    assert answer.choices[0].message.content == question["tuned"]
    assert answer.model == "support"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_a_streamed_answer_is_the_same_text(live: dict[str, Any], openai: OpenAI) -> None:
    question = live["numbers"]["samples"][0]
    chunks = openai.chat.completions.create(
        model="support", messages=question["messages"], temperature=0, max_tokens=64, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == question["tuned"]


def test_chat_is_closed_without_a_key_and_clear_about_a_wrong_model(live: dict[str, Any], openai: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    with pytest.raises(AuthenticationError):
        openai.with_options(api_key="sk-wrong").chat.completions.create(model="support", messages=messages)
    with pytest.raises(APIStatusError, match="support") as error:
        openai.chat.completions.create(model="unknown", messages=messages)
    assert error.value.status_code == 404


def test_the_same_file_dropped_twice_is_one_job_and_one_deployment(
    live: dict[str, Any], azure: LocalAzure, ml: MLClient
) -> None:
    etag = azure.drop("support/faq.jsonl", DATASET)
    second = azure.wait_for_end("support", etag)
    assert second["stage"] == "superseded"
    assert live["id"] in second["history"][-1]["reason"]
    # Events have come twice for every blob and every change of the job's status, too. A job's name would hide a second
    # submission or a second execution; the Resource Manager's log does not.
    assert [job.name for job in ml.jobs.list()] == [live["id"]]
    log = azure.log("control")
    assert len(re.findall(rf"method=PUT path=\S+/jobs/{live['id']} status=201", log)) == 1
    assert log.count(f"job name={live['id']} status=Completed") == 1
    assert len(re.findall(r"method=PUT path=\S+/deployments/\S+ status=201", log)) == 1
    endpoint = json.loads(azure.storage.get_blob_client("runs", "live/support.json").download_blob().readall())[
        "endpoint"
    ]
    assert len(list(ml.online_deployments.list(endpoint))) == 1
    assert [model.version for model in ml.models.list(name="support")] == [
        json.loads(azure.storage.get_blob_client("runs", "live/support.json").download_blob().readall())[
            "model_version"
        ]
    ]


def test_a_bad_file_is_rejected_with_a_report_to_act_on(azure: LocalAzure, ml: MLClient) -> None:
    lines = DATASET.splitlines(keepends=True)
    lines[2] = b'{"messages": [{"role": "user", "content": "no answer"}]}\n'
    lines[4] = b"{broken\n"
    etag = azure.drop("faulty/data.jsonl", b"".join(lines))
    record = azure.wait_for_end("faulty", etag, limit=30)
    assert record["stage"] == "rejected"
    assert "line 3" in record["history"][-1]["reason"]
    report = azure.report(record["id"])
    assert "| 3 |" in report
    assert "| 5 |" in report
    assert "Nothing was trained" in report
    assert record["id"] not in [job.name for job in ml.jobs.list()]
    # The file is as it was.
    assert azure.storage.get_blob_client("datasets", "faulty/data.jsonl").download_blob().readall() == b"".join(lines)


@pytest.mark.parametrize(
    ("blob", "content", "named"),
    [
        ("lost.jsonl", DATASET, "<model>/<file>.jsonl"),
        ("Bad_Name/data.jsonl", DATASET, "lower-case"),
        ("tables/data.csv", b"prompt,completion\na,b\n", "This is CSV"),
    ],
)
def test_a_file_in_the_wrong_place_or_form_is_explained(
    azure: LocalAzure, blob: str, content: bytes, named: str
) -> None:
    folder = blob.rpartition("/")[0]
    etag = azure.drop(blob, content)
    record = azure.wait_for_end(folder if folder == "tables" else "unplaced", etag, limit=30)
    assert record["stage"] == "rejected"
    assert named in record["history"][-1]["reason"]
    assert named in azure.report(record["id"])


def test_a_misspelt_recipe_is_rejected_by_name(azure: LocalAzure) -> None:
    azure.drop("typo/recipe.yaml", b"training: {epoch: 3}")
    record = azure.wait_for_end("typo", azure.drop("typo/data.jsonl", DATASET), limit=30)
    assert record["stage"] == "rejected"
    assert "did you mean `training.epochs`?" in record["history"][-1]["reason"]


def test_a_job_that_fails_ends_failed_with_its_logs_last_lines(azure: LocalAzure) -> None:
    azure.drop("nobase/recipe.yaml", b"base_model: /no/such/model\n")
    record = azure.wait_for_end("nobase", azure.drop("nobase/data.jsonl", DATASET), limit=120)
    assert record["stage"] == "failed"
    assert "/no/such/model" in record["history"][-1]["reason"]
    assert not azure.exists("runs", "live/nobase.json")


def test_a_training_that_diverges_fails_with_advice_and_the_champion_keeps_serving(
    live: dict[str, Any], azure: LocalAzure, openai: OpenAI
) -> None:
    azure.drop("support/recipe.yaml", RECIPE.replace(b"epochs: 4", b"epochs: 4, learning_rate: 1000000"))
    record = azure.wait_for_end("support", azure.drop("support/other.jsonl", DATASET), limit=120)
    azure.drop("support/recipe.yaml", RECIPE)
    reason = record["history"][-1]["reason"]
    assert record["stage"] == "failed"
    assert re.search(r"the training job failed: the loss is \S+ at step \d+; use a smaller learning_rate", reason)
    question = live["numbers"]["samples"][0]
    answer = openai.chat.completions.create(
        model="support", messages=question["messages"], temperature=0, max_tokens=64
    )
    assert answer.choices[0].message.content == question["tuned"]


def kill(azure: LocalAzure, part: str) -> None:
    """End one program of the local Azure as a power cut would."""
    state = json.loads((azure.home / "state.json").read_text(encoding="utf-8"))
    os.kill(int(state["processes"][part]["pid"]), signal.SIGKILL)


def test_a_new_file_replaces_the_model_although_programs_are_killed_on_the_way(
    live: dict[str, Any], azure: LocalAzure, ml: MLClient, openai: OpenAI
) -> None:
    newer = DATASET.replace(b"14 Tannery Lane", b"7 Harbour Street")
    assert newer != DATASET
    # This one goes on from the model that serves.
    azure.drop("support/recipe.yaml", b"base_model: live\n" + RECIPE.replace(b"epochs: 4", b"epochs: 2"))
    etag = azure.drop("support/faq.jsonl", newer)
    killed: list[str] = []
    deadline = time.monotonic() + 180
    record: dict[str, Any] = {}
    while record.get("stage") not in ENDS:
        assert time.monotonic() < deadline, record
        time.sleep(0.2)
        record = next((r for r in azure.records("support") if r["dataset"]["etag"] == etag), {})
        # The one that runs the app while it waits for the job; the one that runs the job and serves the champion.
        for stage, part in (("training", "functions"), ("deploying", "control")):
            if record.get("stage") == stage and part not in killed:
                kill(azure, part)
                killed.append(part)
    assert killed == ["functions", "control"]
    scores = record["numbers"]["eval"]
    assert scores["base"]["loss"] == pytest.approx(scores["champion"]["loss"], rel=1e-3)
    assert scores["tuned"]["loss"] < scores["base"]["loss"] < live["numbers"]["eval"]["base"]["loss"] / 2
    assert record["stage"] == "live", record["history"][-1]["reason"]
    stages = [event["stage"] for event in record["history"]]
    assert stages == sorted(stages, key=[event["stage"] for event in live["history"]].index)
    shares = [int(event["reason"].split(" %")[0]) for event in record["history"] if " % of the" in event["reason"]]
    assert shares == [10, 50, 100]
    assert len(set(stages)) == len(stages) - len(shares)
    first = next(r for r in azure.records("support") if r["id"] == live["id"])
    assert first["stage"] == "retired"
    trained = [each["id"] for each in azure.records("support") if "job" in each["links"]]
    assert {live["id"], record["id"]} < set(trained)
    assert sorted(job.name for job in ml.jobs.list() if "support" in job.name) == sorted(trained)
    name, only = next(iter(ml.online_endpoints.list())).name, {"r-" + record["id"].rpartition("-")[2]: 100}
    deadline = time.monotonic() + 30  # the old deployment is there until it has been deleted
    while (traffic := ml.online_endpoints.get(name).traffic) != only and time.monotonic() < deadline:
        time.sleep(0.5)
    assert traffic == only
    question = record["numbers"]["samples"][0]
    answer = openai.chat.completions.create(
        model="support", messages=question["messages"], temperature=0, max_tokens=64
    )
    assert answer.choices[0].message.content == question["tuned"]


def test_after_a_restart_the_model_answers_again(live: dict[str, Any], azure: LocalAzure, openai: OpenAI) -> None:
    run_emulator(azure.home, "down")
    run_emulator(azure.home, "up", "--event-copies", "2")
    champion = next(record for record in azure.records("support") if record["stage"] == "live")
    known = len(azure.records("support"))
    question = champion["numbers"]["samples"][0]
    deadline = time.monotonic() + 90
    while True:
        try:
            answer = openai.chat.completions.create(
                model="support", messages=question["messages"], temperature=0, max_tokens=64
            )
            break
        except APIStatusError as error:
            # Until the deployment's process has loaded the model again, the answer says so.
            assert error.status_code == 503
            assert time.monotonic() < deadline, error
            time.sleep(0.5)
    assert answer.choices[0].message.content == question["tuned"]
    # Nothing was started anew: no file was taken for a new one.
    assert len(azure.records("support")) == known


def test_no_log_holds_a_prompt_an_answer_or_a_key(live: dict[str, Any], azure: LocalAzure) -> None:
    question = live["numbers"]["samples"][0]
    secrets = [azure.environment["CHAT_API_KEY"], azure.environment["IDENTITY_HEADER"], question["tuned"]]
    secrets += [message["content"] for message in question["messages"]]
    for log in (azure.home / "logs").glob("*.log"):
        text = log.read_text(encoding="utf-8", errors="replace")
        assert not [secret for secret in secrets if secret in text], log.name
