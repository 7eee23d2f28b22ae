"""The registry `azureml` through the unmodified azure-ai-ml client, as notebooks use it."""

import ast
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from azure.ai.ml import Input, MLClient
from azure.ai.ml._restclient.arm_ml_service import models
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import (
    CommandComponent,
    Environment,
    Model,
    PipelineJob,
    Registry,
)
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential

from tests.emulator.conformance import violations
from tests.local_azure import LocalAzure

PHI = "Phi-3-mini-4k-instruct"


@pytest.fixture(scope="module")
def registry(azure: LocalAzure) -> MLClient:
    assert azure.environment["REGISTRY_DISCOVERY_ENDPOINT_URL"] == os.environ["REGISTRY_DISCOVERY_ENDPOINT_URL"]
    return MLClient(DefaultAzureCredential(), registry_name="azureml")


def test_foundation_models_have_the_tags_that_notebooks_read(registry: MLClient) -> None:
    for name in (PHI, "Phi-3-mini-128k-instruct", "Phi-3-medium-4k-instruct", "Phi-3.5-mini-instruct"):
        model = registry.models.get(name, label="latest")
        assert model.id == f"azureml://registries/azureml/models/{name}/versions/{model.version}"
        sizes = ast.literal_eval(model.tags["finetune_compute_allow_list"])
        assert "Standard_ND96amsr_A100_v4" in sizes
        assert ast.literal_eval(model.tags["model_specific_defaults"])["apply_lora"] == "true"
        assert model.tags["task"] == "chat-completion"
        assert "python_function" in model.flavors
    assert registry.models.get("Phi-4-mini-instruct", version="1").type == "mlflow_model"
    assert [m.version for m in registry.models.list(PHI)] == ["15", "14"]
    assert PHI in [m.name for m in registry.models.list()]


def test_curated_environments_are_there(registry: MLClient) -> None:
    curated = registry.environments.get("acft-hf-nlp-gpu", version="59")
    assert curated.image == "mcr.microsoft.com/azureml/curated/acft-hf-nlp-gpu:59"
    assert registry.environments.get("sklearn-1.5", label="latest").name == "sklearn-1.5"
    assert "acft-hf-nlp-gpu" in [e.name for e in registry.environments.list()]
    assert [e.version for e in registry.environments.list("acft-hf-nlp-gpu")] == ["60", "59"]


def test_it_has_no_data_assets(registry: MLClient) -> None:
    assert list(registry.data.list()) == []
    assert list(registry.data.list("ultrachat")) == []
    with pytest.raises(ResourceNotFoundError):
        registry.data.get("ultrachat", version="1")
    with pytest.raises(Exception, match="ultrachat"):
        registry.data.get("ultrachat", label="latest")


@pytest.mark.parametrize(
    ("path", "annotation"),
    [
        ("models", models.ModelContainer),
        (f"models/{PHI}/versions", models.ModelVersion),
        ("environments", models.EnvironmentContainer),
        ("environments/acft-hf-nlp-gpu/versions", models.EnvironmentVersion),
        ("components", models.ComponentContainer),
        ("components/chat_completion_pipeline/versions", models.ComponentVersion),
    ],
)
def test_its_answers_are_of_the_sdks_own_models(azure: LocalAzure, path: str, annotation: type) -> None:
    """The SDK reads this data plane without its generated operations, where the oracle listens."""
    env = azure.environment
    url = (
        f"{env['REGISTRY_DISCOVERY_ENDPOINT_URL']}mferp/managementfrontend/subscriptions/{env['AZURE_SUBSCRIPTION_ID']}"
        f"/resourceGroups/{env['AZURE_RESOURCE_GROUP']}/providers/Microsoft.MachineLearningServices/registries/azureml"
    )
    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
    values = requests.get(f"{url}/{path}", headers={"Authorization": f"Bearer {token}"}, timeout=10).json()["value"]
    assert values
    assert [violation for value in values for violation in violations(annotation, value)] == []


def test_the_chat_completion_pipeline_is_called_as_in_the_notebook(registry: MLClient) -> None:
    model = registry.models.get(PHI, label="latest")
    parameters = {"num_train_epochs": 3, "learning_rate": 5e-6, "lr_scheduler_type": "cosine", "deepspeed_stage": 2}
    parameters.update(ast.literal_eval(model.tags["model_specific_defaults"]))
    chat_completion = registry.components.get(name="chat_completion_pipeline", label="latest")
    assert chat_completion.inputs["learning_rate"].default == pytest.approx(2e-5)
    assert registry.components.get("chat_completion_pipeline").version == chat_completion.version
    assert [c.version for c in registry.components.list("chat_completion_pipeline")] == ["0.0.57", "0.0.56"]
    assert [c.name for c in registry.components.list()] == ["chat_completion_pipeline"]

    @pipeline(name="fine-tunes")
    def create_pipeline():  # type: ignore[no-untyped-def]
        step = chat_completion(
            mlflow_model_path=model.id,
            compute_model_import="gpu",
            compute_preprocess="gpu",
            compute_finetune="gpu",
            compute_model_evaluation="gpu",
            train_file_path=Input(type="uri_file", path="./train.jsonl"),
            test_file_path=Input(type="uri_file", path="./test.jsonl"),
            number_of_gpu_to_use_finetuning=1,
            **parameters,
        )
        return {"trained_model": step.outputs.mlflow_model_folder}

    job: PipelineJob = create_pipeline()
    job.settings.force_rerun = True
    (step,) = job.jobs.values()
    assert step.component.id.endswith("/components/chat_completion_pipeline/versions/0.0.57")
    assert job.outputs["trained_model"].type == "mlflow_model"
    with pytest.raises(Exception, match="learning_speed"):
        chat_completion(learning_speed=1)


def test_what_the_registry_does_not_have_is_not_found(registry: MLClient) -> None:
    for get in (registry.models.get, registry.components.get, registry.environments.get):
        with pytest.raises(ResourceNotFoundError):
            get("nobody", version="1")
        with pytest.raises(Exception, match="nobody"):
            get("nobody", label="latest")
    assert list(registry.models.list("nobody")) == []
    with pytest.raises(ResourceNotFoundError, match="Registry contoso could not be found"):
        MLClient(DefaultAzureCredential(), registry_name="contoso")


def test_weights_and_writes_are_refused_with_the_reason(registry: MLClient, tmp_path: Path) -> None:
    with pytest.raises(HttpResponseError, match="not their weights"):
        registry.models.download(PHI, "15", download_path=tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(HttpResponseError, match="read-only"):
        registry.models.create_or_update(Model(name="mine", version="1", path=tmp_path / "model.bin"))
    with pytest.raises(HttpResponseError, match="read-only"):
        registry.environments.create_or_update(Environment(name="acft-hf-nlp-gpu", image="python:3.11"))
    with pytest.raises(HttpResponseError, match="read-only"):
        registry.components.create_or_update(
            CommandComponent(
                name="chat_completion_pipeline",
                command="true",
                environment="azureml://registries/azureml/environments/sklearn-1.5/versions/10",
            )
        )
    with pytest.raises(HttpResponseError, match="read-only"):
        registry.models.archive(PHI, version="15")
    with pytest.raises(HttpResponseError, match="read-only"):
        registry.models.archive(PHI)


def test_the_registry_is_a_resource_too(ml: MLClient) -> None:
    assert ml.registries.get("azureml").name == "azureml"
    assert [r.name for r in ml.registries.list()] == ["azureml"]
    with pytest.raises(ResourceNotFoundError):
        ml.registries.get("contoso")
    with pytest.raises(HttpResponseError, match="read-only"):
        ml.registries.begin_create(Registry(name="azureml", location="westeurope", replication_locations=[])).result()
    with pytest.raises(HttpResponseError, match="read-only"):
        ml.registries.begin_delete(name="azureml").result()


def test_discovery_wants_a_token(azure: LocalAzure) -> None:
    send: Callable[..., requests.Response] = requests.get
    url = azure.environment["REGISTRY_DISCOVERY_ENDPOINT_URL"] + "registrymanagement/v1.0/registries/azureml/discovery"
    assert send(url, timeout=10).status_code == 401
