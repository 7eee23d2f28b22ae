"""What the scoring of MLflow chat models makes of requests that it cannot read; the model itself is not needed."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as the inference server imports it, with a chat model that answers "hello"."""
    for name in ("azureml_inference_server_http", "azureml_inference_server_http.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    response = ModuleType("azureml_inference_server_http.api.aml_response")

    def answer(message: Any, status: int, **_: Any) -> Any:
        return SimpleNamespace(message=message, status=status)

    vars(response)["AMLResponse"] = answer
    monkeypatch.setitem(sys.modules, response.__name__, response)
    monkeypatch.delitem(sys.modules, "emulator.online.scoring.mlflow_score", raising=False)
    script = importlib.import_module("emulator.online.scoring.mlflow_score")
    monkeypatch.setattr(script, "pipeline", lambda *_, **__: [{"generated_text": "hello"}])
    yield script
    sys.modules.pop("emulator.online.scoring.mlflow_score", None)


@pytest.mark.parametrize(
    "data",
    [
        {"input_string": {"role": "user", "content": "hi"}},
        {"input_string": 5},
        {"input_string": []},
        {"input_string": [[]]},
        {"input_string": [{"role": "user"}]},
        {"input_string": "hi", "parameters": ["max_new_tokens"]},
        {"prompt": "hi"},
        None,
        [1],
    ],
)
def test_data_of_another_shape_is_a_400_that_says_why(scoring: Any, data: Any) -> None:
    answer = scoring.run(json.dumps({"input_data": data}))
    assert answer.status == 400
    assert answer.message["message"]


def test_a_conversation_is_answered(scoring: Any) -> None:
    data = {"input_string": [{"role": "user", "content": "hi"}], "parameters": {"temperature": 1}}
    assert scoring.run(json.dumps({"input_data": data})) == {"output": "hello"}
