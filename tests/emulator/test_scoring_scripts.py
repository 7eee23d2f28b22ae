"""Scoring scripts, and MLflow models without one, under the real azureml-inference-server-http."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    CodeConfiguration,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
)
from azure.core.exceptions import HttpResponseError

from tests.emulator.online import ask, create_endpoint, credential, deploy, set_traffic
from tests.local_azure import ROOT, LocalAzure

TRAINING = ROOT / ".venv-training" / "bin" / "python"
IMAGE = Environment(image="mcr.microsoft.com/azureml/minimal-ubuntu22.04-py39-cpu-inference:latest")
SCRIPT = """
import json, os, sys
from pathlib import Path
import helper
import torch  # of the image's environment


def init():
    global words
    (file,) = Path(os.environ["AZUREML_MODEL_DIR"]).rglob("words.txt")
    words = file.read_text().split()
    print("the model has", len(words), "words")


def run(raw_data):
    wish = json.loads(raw_data)
    if "fail" in wish:
        raise RuntimeError(wish["fail"])
    return {
        "words": helper.shout(words), "greeting": os.environ["GREETING"], "mount": os.environ["MOUNTED"],
        "root": os.environ["AML_APP_ROOT"] == os.getcwd(), "torch": torch.__version__, "pid": os.getpid(),
    }
"""
# A table of two columns to its row sums, times the parameter; and texts to their lengths, without a signature.
MODELS = """
import sys
import mlflow
import pandas
from mlflow.models import infer_signature


class Sum(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [float(total) * params["factor"] for total in model_input[["a", "b"]].sum(axis=1)]


class Tensors(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return {name: values.sum(axis=1) for name, values in model_input.items()}


class Lengths(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [len(text) for text in model_input]


import numpy
table = pandas.DataFrame({"a": [1.0], "b": [2.0]})
tensors = {"x": numpy.zeros((1, 3)), "y": numpy.zeros((1, 2))}
signatures = {
    "sum": infer_signature(table, [3.0], params={"factor": 1.0}),
    "tensors": infer_signature(tensors, None),
    "lengths": None,
}
for name, kind in (("sum", Sum), ("tensors", Tensors), ("lengths", Lengths)):
    mlflow.pyfunc.save_model(
        f"{sys.argv[1]}/{name}", python_model=kind(), signature=signatures[name], pip_requirements=[]
    )
"""
CHAT_MODEL = """
import sys
from pathlib import Path
from training.base_model import load_base_model
from training.export import export

export(*load_base_model("embedded"), Path(sys.argv[1]), {})
"""


@pytest.fixture(scope="module")
def endpoint(ml: MLClient) -> ManagedOnlineEndpoint:
    return create_endpoint(ml, "scripts")


@pytest.fixture(scope="module")
def mlflow_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of MLflow models, made in the training environment."""
    folder = tmp_path_factory.mktemp("models")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    for script, target in ((MODELS, folder), (CHAT_MODEL, folder / "chat")):
        command = [str(TRAINING), "-c", script, str(target)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


def upload(azure: LocalAzure, folder: Path, place: str) -> str:
    """Store a folder and return the URI under which it can be registered."""
    container = azure.storage.get_container_client("runs")
    for path in folder.rglob("*"):
        if path.is_file():
            container.upload_blob(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes(), overwrite=True)
    return f"{container.url}/{place}"


def deploy_script(ml: MLClient, folder: Path, name: str, **settings: Any) -> ManagedOnlineDeployment:
    return deploy(
        ml,
        ManagedOnlineDeployment(
            name=name,
            endpoint_name="scripts",
            code_configuration=CodeConfiguration(code=str(folder), scoring_script="src/score.py"),
            environment=IMAGE,
            instance_type="Standard_DS3_v2",
            instance_count=1,
            request_settings=OnlineRequestSettings(request_timeout_ms=30000),
            **settings,
        ),
    )


def code_folder(folder: Path, script: str) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "score.py").write_text(script)
    (folder / "helper.py").write_text("def shout(words):\n    return [word.upper() for word in words]\n")
    return folder


def test_a_scoring_script_answers_with_its_model_its_folder_and_its_image_s_packages(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "words.txt").write_text("one two")
    uri = upload(azure, tmp_path / "words", "models/words")
    model = ml.models.create_or_update(Model(name="words", version="3", path=uri, type="custom_model"))
    deploy_script(
        ml,
        code_folder(tmp_path / "code", SCRIPT),
        "script",
        model=model,
        environment_variables={
            "GREETING": "hello",
            "WORKER_COUNT": "2",
            "MOUNTED": "/var/azureml-app/azureml-models/words/3/words/words.txt",
        },
    )
    answer = ask(ml, endpoint, {}, "script")
    told = answer.json()
    assert (told["words"], told["greeting"], told["root"]) == (["ONE", "TWO"], "hello", True)
    assert Path(told["mount"]).read_text() == "one two"  # the container's path, as it is on this machine
    assert answer.headers["x-ms-server-version"].startswith("azmlinfsrv/")
    assert answer.headers["x-ms-run-function-failed"] == "False"
    assert len({ask(ml, endpoint, {}, "script").json()["pid"] for _ in range(20)}) == 2  # WORKER_COUNT
    log = ml.online_deployments.get_logs("script", "scripts", lines=200)
    assert "the model has 2 words" in log
    fetched = ml.online_deployments.get_logs("script", "scripts", lines=20, container_type="storage-initializer")
    assert "Downloaded the model words:3, 1 files" in fetched
    assert "Downloaded the code, 2 files" in fetched

    failed = ask(ml, endpoint, {"fail": "no such word"}, "script")
    assert failed.status_code == 424
    assert failed.headers["ms-azureml-model-error-statuscode"] == "500"
    assert failed.headers["x-ms-run-function-failed"] == "True"
    assert "no such word" in ml.online_deployments.get_logs("script", "scripts", lines=200)

    set_traffic(ml, "scripts", {"script": 100})
    shown = ml.online_endpoints.get("scripts")
    assert shown.scoring_uri.endswith("/score")
    headers = {"Authorization": f"Bearer {credential(ml, endpoint)}"}
    contract = requests.get(shown.openapi_uri, headers=headers, timeout=10).json()
    assert "/score" in contract["paths"]
    set_traffic(ml, "scripts", {})


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "def init():\n    raise RuntimeError('no model')\ndef run(data):\n    return 1\n",
            "no model",
        ),
        ("def init():\n    pass\n", "does not have a run"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
    ],
)
def test_a_script_that_cannot_start_fails_with_the_reason(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, tmp_path: Path, script: str, message: str
) -> None:
    with pytest.raises(HttpResponseError, match="User container has crashed"):
        deploy_script(ml, code_folder(tmp_path / "code", script), "hopeless")
    assert message in ml.online_deployments.get_logs("hopeless", "scripts", lines=300)


@pytest.fixture(scope="module")
def no_code(azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint, mlflow_models: Path) -> None:
    """Deployments of the MLflow models, each under its own name, without code or environment."""
    for name in ("sum", "tensors", "lengths", "chat"):
        uri = upload(azure, mlflow_models / name, f"models/{name}")
        model = ml.models.create_or_update(Model(name=name, path=uri, type="mlflow_model"))
        deployment = ManagedOnlineDeployment(
            name=f"mlflow-{name}",
            endpoint_name="scripts",
            model=model,
            instance_type="Standard_DS3_v2",
            instance_count=1,
            request_settings=OnlineRequestSettings(request_timeout_ms=60000),
        )
        deploy(ml, deployment)


@pytest.mark.parametrize(
    ("deployment", "body", "answer"),
    [
        ("sum", {"input_data": {"columns": ["b", "a"], "index": [7, 8], "data": [[1, 2], [3, 4]]}}, [3.0, 7.0]),
        ("sum", {"input_data": {"columns": ["a", "b"], "data": [[1, 2]]}, "params": {"factor": 10}}, [30.0]),
        ("sum", {"input_data": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]}, [3.0, 7.0]),
        ("sum", {"input_data": [[1, 2], [3, 4]]}, [3.0, 7.0]),
        ("tensors", {"input_data": {"x": [[1, 2, 3]], "y": [[4, 5]]}}, {"x": [6.0], "y": [9.0]}),
        ("lengths", {"input_data": ["one", "three"], "params": {}}, [3, 5]),
    ],
)
def test_an_mlflow_model_reads_what_azure_documents(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, no_code: None, deployment: str, body: Any, answer: Any
) -> None:
    given = ask(ml, endpoint, body, f"mlflow-{deployment}")
    assert given.status_code == 200, given.text
    assert given.json() == answer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": [[1, 2]]}, "top level key named 'input_data'"),
        ({"input_data": {"columns": ["a"], "data": [[1]]}}, "signature"),
        ({"input_data": {"columns": ["a", "b"], "data": [["x", "y"]]}}, "signature"),
        ({"input_data": [[1, 2]], "params": "none"}, "'params' must be an object"),
    ],
)
def test_what_an_mlflow_model_cannot_read_is_424_with_the_reason(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, no_code: None, body: Any, message: str
) -> None:
    refused = ask(ml, endpoint, body, "mlflow-sum")
    assert refused.status_code == 424
    assert refused.headers["ms-azureml-model-error-statuscode"] == "400"
    assert message in refused.json()["message"]


def test_a_chat_model_answers_the_payloads_of_the_tutorials(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, no_code: None
) -> None:
    settings = {"max_new_tokens": 8, "do_sample": False}
    messages = [{"role": "user", "content": "Where are you?"}]

    def chat(body: Any) -> Any:
        answer = ask(ml, endpoint, body, "mlflow-chat", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    one = chat({"input_data": {"input_string": messages, "parameters": settings}, "params": {}})
    assert one == chat({"input_data": {"input_string": [messages], "parameters": settings}})
    assert set(one) == {"output"}
    assert isinstance(one["output"], str)
    two = chat({"input_data": {"input_string": [messages, messages], "parameters": settings}})
    assert two["output"] == [one["output"]] * 2
    full = chat({"input_data": ["Where are"], "params": {**settings, "return_full_text": True}})
    assert full[0].startswith("Where are")
    short = chat({"input_data": ["Where are"], "params": {**settings, "return_full_text": False}})
    assert full[0] == "Where are" + short[0]
    for body in (
        {"input_data": {"input_string": [{"role": "user"}]}},
        {"input_data": [1, 2]},
        {"input_data": ["x"], "params": {"no_such_setting": 1}},
    ):
        refused = ask(ml, endpoint, body, "mlflow-chat")
        assert (refused.status_code, refused.headers["ms-azureml-model-error-statuscode"]) == (424, "400"), body


def test_only_an_mlflow_model_is_deployed_without_an_environment(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_text("1")
    model = Model(name="plain", path=upload(azure, tmp_path, "models/plain"), type="custom_model")
    deployment = ManagedOnlineDeployment(
        name="plain", endpoint_name="scripts", model=ml.models.create_or_update(model), instance_count=1
    )
    with pytest.raises(HttpResponseError, match="only a model of type mlflow_model"):
        ml.online_deployments.begin_create_or_update(deployment)
    assert "plain" not in [shown.name for shown in ml.online_deployments.list("scripts")]
