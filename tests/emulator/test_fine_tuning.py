"""Fine-tuning through the unmodified SDK: the registry's component, fine-tuning jobs, and serverless endpoints."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.ai.ml import Input, MLClient, Output
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import AmlCompute, Data, Model, ServerlessEndpoint
from azure.ai.ml.entities._job.finetuning.azure_openai_finetuning_job import AzureOpenAIFineTuningJob
from azure.ai.ml.entities._job.finetuning.custom_model_finetuning_job import CustomModelFineTuningJob
from azure.ai.ml.finetuning import FineTuningTaskType, create_finetuning_job
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from openai import APIError, AuthenticationError, BadRequestError, OpenAI

from tests.emulator.job_helpers import Arm, completed, log, status
from tests.local_azure import LocalAzure

PHI = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct"
# Enough for the tiny embedded model to learn two answers by heart.
QUICK = {"num_train_epochs": "12", "per_device_train_batch_size": "4", "learning_rate": "0.003"}
QUESTIONS = {"When are you open?": "From nine to five.", "Do you repair bikes?": "Yes, all of them."}


@pytest.fixture(scope="module", autouse=True)
def compute(ml: MLClient) -> None:
    gpus = AmlCompute(name="gpus", size="Standard_NC24ads_A100_v4", min_instances=0, max_instances=2)
    ml.compute.begin_create_or_update(gpus).result()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files in the form of ultrachat_200k, as the tutorials download it."""
    folder = tmp_path_factory.mktemp("ultrachat")
    rows = [
        {
            "prompt": question,
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "prompt_id": str(number),
        }
        for number, (question, answer) in enumerate(QUESTIONS.items())
    ]
    for name, copies in (("train_sft", 16), ("test_sft", 1)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * copies))
    return folder


@pytest.fixture(scope="module")
def tuned(ml: MLClient, data: Path) -> str:
    """The name of a pipeline job that has run the registry's chat_completion_pipeline."""
    registry = MLClient(DefaultAzureCredential(), registry_name="azureml")
    model = registry.models.get("Phi-3-mini-4k-instruct", label="latest")
    chat_completion = registry.components.get("chat_completion_pipeline", label="latest")

    @pipeline(name="tuning")
    def create() -> dict[str, Any]:
        step = chat_completion(
            mlflow_model_path=model.id,
            compute_model_import="gpus",
            compute_preprocess="gpus",
            compute_finetune="gpus",
            compute_model_evaluation="gpus",
            train_file_path=Input(type="uri_file", path=str(data / "train_sft.jsonl")),
            test_file_path=Input(type="uri_file", path=str(data / "test_sft.jsonl")),
            number_of_gpu_to_use_finetuning=1,
            apply_lora="true",
            num_train_epochs=12,
            per_device_train_batch_size=4,
            learning_rate=0.003,
            lr_scheduler_type="cosine",
        )
        return {"trained_model": step.outputs.mlflow_model_folder}

    job = create()
    job.settings.force_rerun = True
    job.settings.continue_on_step_failure = False
    name = str(ml.jobs.create_or_update(job, experiment_name="chat").name)
    ml.jobs.stream(name)
    return name


def test_the_registry_s_component_really_trains_and_says_what_stands_in(
    azure: LocalAzure, ml: MLClient, tuned: str
) -> None:
    completed(ml, tuned)
    (component,) = ml.jobs.list(parent_job_name=tuned)
    (training,) = ml.jobs.list(parent_job_name=component.name)
    assert (component.display_name, training.display_name) == ("step", "chat_completion_finetune")
    lines = log(azure, training.name).splitlines()
    assert lines[0].startswith(f"The base model {PHI}/versions/")
    assert "'embedded' stands in for it" in lines[0]
    assert "apply_lora=true" in lines[1]
    assert any(line.startswith("phase=done") for line in lines)
    shown = ml.jobs.get(training.name)
    assert shown.compute == "gpus"
    assert "--learning_rate 0.003 --batch_size 4" in shown.command


@pytest.fixture(scope="module")
def served(ml: MLClient, tuned: str) -> ServerlessEndpoint:
    """A serverless endpoint on the model that the pipeline has tuned."""
    path = f"azureml://jobs/{tuned}/outputs/trained_model"
    ml.models.create_or_update(Model(path=path, type=AssetTypes.MLFLOW_MODEL, name="ultrachat", version="3"))
    guid = ml.workspaces.get("local")._workspace_id
    model_id = f"azureml://locations/westeurope/workspaces/{guid}/models/ultrachat/versions/3"
    asked = ServerlessEndpoint(name="tuned", model_id=model_id, tags={"by": "test"})
    endpoint = ml.serverless_endpoints.begin_create_or_update(asked).result()
    assert (endpoint.provisioning_state, endpoint.auth_mode, endpoint.model_id) == ("succeeded", "Key", model_id)
    return endpoint


def client(ml: MLClient, served: ServerlessEndpoint, path: str = "/v1") -> OpenAI:
    key = ml.serverless_endpoints.get_keys("tuned").primary_key
    return OpenAI(base_url=f"{served.scoring_uri}{path}", api_key=key, max_retries=0)


def says(chat: OpenAI, question: str) -> str | None:
    asked = [{"role": "user", "content": question}]
    said = chat.chat.completions.create(model="tuned", messages=asked, temperature=0, max_tokens=40)
    return said.choices[0].message.content


def test_the_tuned_model_is_downloaded_from_the_pipeline_s_output(ml: MLClient, tuned: str, tmp_path: Path) -> None:
    ml.jobs.download(tuned, output_name="trained_model", download_path=tmp_path)
    assert (tmp_path / "named-outputs" / "trained_model" / "MLmodel").exists()


def test_a_tuned_model_answers_chat_behind_a_serverless_endpoint(ml: MLClient, served: ServerlessEndpoint) -> None:
    shown = ml.serverless_endpoints.get("tuned")
    assert (shown.scoring_uri, shown.tags) == (served.scoring_uri, {"by": "test"})
    assert "tuned" in [each.name for each in ml.serverless_endpoints.list()]
    for path in ("", "/v1"):
        for question, answer in QUESTIONS.items():
            assert says(client(ml, served, path), question) == answer
    chat = client(ml, served)
    asked = [{"role": "user", "content": "When are you open?"}]
    streamed = chat.chat.completions.create(model="tuned", messages=asked, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "From nine to five."
    with pytest.raises(BadRequestError):
        chat.chat.completions.create(model="tuned", messages=[])
    with pytest.raises(AuthenticationError):
        says(OpenAI(base_url=served.scoring_uri, api_key="wrong", max_retries=0), "?")


def test_a_new_key_replaces_the_old_one_and_a_deleted_endpoint_is_gone(azure: LocalAzure, ml: MLClient) -> None:
    endpoint = ml.serverless_endpoints.begin_create_or_update(
        ServerlessEndpoint(name="base-model", model_id=PHI)
    ).result()
    old = ml.serverless_endpoints.get_keys("base-model")
    # The SDK's begin_regenerate_keys always raises a TypeError of its own (it does not pass the endpoint's name), so
    # the generated client below it is used.
    where = (azure.environment["AZURE_RESOURCE_GROUP"], azure.environment["AZURE_ML_WORKSPACE"], "base-model")
    given = {"keyType": "Secondary", "keyValue": old.secondary_key}
    generated = ml._service_client_01_2024_preview_arm.serverless_endpoints
    generated.begin_regenerate_keys(*where, given, content_type="application/json").result()
    new = ml.serverless_endpoints.get_keys("base-model")
    assert (new.primary_key, new.secondary_key != old.secondary_key) == (old.primary_key, True)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    url = f"{endpoint.scoring_uri}/v1/chat/completions"

    def ask(key: str | None) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return requests.post(url, json=body, headers=headers, timeout=60)

    assert ask(new.secondary_key).json()["choices"][0]["message"]["role"] == "assistant"  # the untuned stand-in
    assert ask(old.secondary_key).status_code == 401
    assert ask(None).status_code == 401
    assert requests.get(f"{endpoint.scoring_uri}/nothing", headers={"Authorization": f"Bearer {new.primary_key}"},
                        timeout=30).status_code == 404  # fmt: skip
    ml.serverless_endpoints.begin_delete("base-model").result()
    with pytest.raises(ResourceNotFoundError):
        ml.serverless_endpoints.get("base-model")
    assert ask(new.primary_key).status_code == 404
    assert list(ml.marketplace_subscriptions.list()) == []


def test_a_serverless_endpoint_on_what_does_not_exist_is_refused(ml: MLClient) -> None:
    for model, reason in (
        ("azureml://registries/azureml/models/No-such-model", "does not exist in the registry"),
        ("azureml://locations/westeurope/workspaces/w/models/nothing", "does not exist in this workspace"),
        ("Phi-3", "is no model"),
    ):
        with pytest.raises(HttpResponseError, match=reason):
            ml.serverless_endpoints.begin_create_or_update(ServerlessEndpoint(name="refused", model_id=model))


def test_a_fine_tuning_job_registers_its_model(azure: LocalAzure, ml: MLClient, data: Path) -> None:
    asset = ml.data.create_or_update(Data(name="chats", path=str(data / "train_sft.jsonl"), type="uri_file"))
    job = create_finetuning_job(
        task=FineTuningTaskType.CHAT_COMPLETION,
        training_data=f"azureml:{asset.name}:{asset.version}",
        validation_data=str(data / "test_sft.jsonl"),
        hyperparameters={**QUICK, "num_train_epochs": "1"},
        model=f"{PHI}/versions/15",
        compute="gpus",
        name="tune",
        display_name="tune phi",
        experiment_name="chat",
        tags={"by": "test"},
        output_model_name_prefix="phi-tuned",
    )
    submitted = ml.jobs.create_or_update(job)
    assert submitted.name == "tune"
    completed(ml, "tune")
    shown = ml.jobs.get("tune")
    assert isinstance(shown, CustomModelFineTuningJob)
    assert (shown.status, shown.tags, shown.display_name) == ("Completed", {"by": "test"}, "tune phi")
    assert shown.hyperparameters["num_train_epochs"] == "1"
    assert shown.properties["azureml.ModelName"] == "Phi-3-mini-4k-instruct"
    assert shown.outputs["registered_model"].name == "phi-tuned"
    model = ml.models.get("phi-tuned", version="1")
    assert (model.type, model.job_name) == ("mlflow_model", "tune")
    (child,) = ml.jobs.list(parent_job_name="tune")
    assert "phase=done" in log(azure, child.name)
    assert "tune" in {each.name for each in ml.jobs.list()}


def test_a_fine_tuning_job_fails_with_what_the_training_said(ml: MLClient, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"texts": "no messages"}\n')
    job = create_finetuning_job(
        task="chatCompletion",
        training_data=str(tmp_path / "bad.jsonl"),
        validation_data=str(tmp_path / "bad.jsonl"),
        model=f"{PHI}/versions/15",
        name="tune-bad",
        output_model_name_prefix="never",
    )
    ml.jobs.create_or_update(job)
    deadline = time.monotonic() + 60
    while status(ml, "tune-bad") != "Failed":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    error = ml.jobs._runs_operations.get_run_details("tune-bad").error.error.message
    assert "Failed nodes: /finetune" in error
    assert "bad.jsonl line 1 must be an object with a non-empty list 'messages'" in error
    with pytest.raises(ResourceNotFoundError):
        ml.models.get("never", version="1")


def test_a_fine_tuning_job_that_cannot_run_is_refused(azure: LocalAzure, ml: MLClient, data: Path) -> None:
    file, output = str(data / "train_sft.jsonl"), {"registered_model": Output(type="mlflow_model", name="m")}

    def submit(**changed: Any) -> None:
        given = {"task": "chatCompletion", "training_data": file, "validation_data": file,
                 "model": f"{PHI}/versions/15", "name": "refused", "output_model_name_prefix": "m"}  # fmt: skip
        ml.jobs.create_or_update(create_finetuning_job(**{**given, **changed}))

    for changed, reason in (
        ({"model": "azureml://registries/azureml/models/Phi-0/versions/1"}, "does not exist in the registry"),
        ({"model": "azureml://registries/azureml-meta/models/Llama/versions/1"}, "does not exist in the registry"),
        ({"task": "TextSummarization"}, "the task TextSummarization is not modelled"),
        ({"training_data": "azureml:nothing:1"}, "nothing"),
        ({"compute": "gone"}, "gone"),
    ):
        with pytest.raises(HttpResponseError, match=reason):
            submit(**changed)
    openai_job = AzureOpenAIFineTuningJob(
        task="chatCompletion",
        model=Input(type="mlflow_model", path="azureml://registries/azure-openai-v2/models/gpt-4/versions/9"),
        training_data=Input(type="uri_file", path=file),
        validation_data=Input(type="uri_file", path=file),
        outputs=output,
        name="refused",
    )
    with pytest.raises(HttpResponseError, match="Azure OpenAI's models is not modelled"):
        ml.jobs.create_or_update(openai_job)
    arm = Arm(azure)
    answer = arm.call("PUT", "jobs/refused", {"properties": {"jobType": "FineTuning"}})
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400,
        "A fine-tuning job needs 'fineTuningDetails'.",
    )
    assert arm.call("GET", "jobs/refused").status_code == 404


def test_a_serverless_endpoint_answers_again_after_a_kill(
    azure: LocalAzure, ml: MLClient, served: ServerlessEndpoint
) -> None:
    state = json.loads((azure.home / "state.json").read_text())
    os.kill(int(state["processes"]["control"]["pid"]), signal.SIGKILL)
    deadline = time.monotonic() + 90
    while True:
        try:
            assert says(client(ml, served), "When are you open?") == "From nine to five."
            break
        except (APIError, AzureError):
            assert time.monotonic() < deadline
            time.sleep(0.3)
    assert ml.serverless_endpoints.get("tuned").provisioning_state == "succeeded"
