"""The scoring script of MLflow models that are deployed without one, as Azure ML's no-code deployment has it.

The inference server calls ``init`` once and ``run`` with each request's body: ``{"input_data": …, "params": …}``.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

from azureml_inference_server_http.api.aml_response import AMLResponse

CHAT_TASK = "llm/v1/chat"
GENERATION_SETTINGS = {"max_new_tokens": 256}  # Guess: without max_new_tokens a chat model writes 256

model: Any = None
pipeline: Any = None


class BadInput(ValueError):
    """The request's body is not what this model reads; the message says what is."""


def init() -> None:
    """Load the one MLflow model below AZUREML_MODEL_DIR; a chat model as its pipeline, any other as a pyfunc."""
    global model, pipeline
    import mlflow

    folder = Path(os.environ["AZUREML_MODEL_DIR"])
    found = min(folder.rglob("MLmodel"), key=lambda path: len(path.parts), default=None)
    if found is None:
        raise FileNotFoundError(f"There is no MLmodel file below {folder}: this is no MLflow model.")
    path = str(found.parent)
    flavors = mlflow.models.Model.load(path).flavors
    if flavors.get("transformers", {}).get("inference_task") == CHAT_TASK:
        pipeline = mlflow.transformers.load_model(path)
    else:
        model = mlflow.pyfunc.load_model(path)


def run(raw_data: str) -> Any:
    """Answer one request; one that the model cannot read gets a 400 that says why."""
    try:
        body = _object(raw_data)
        return _chat(body) if pipeline is not None else _predict(body)
    except BadInput as error:
        # Guess: a request that an MLflow model cannot read is the model's 400 (the service may say 500)
        return AMLResponse({"message": str(error)}, 400, json_str=True)


def _object(raw_data: str) -> dict[str, Any]:
    try:
        body = json.loads(raw_data)
    except ValueError as error:
        raise BadInput(f"The request is not JSON: {error}.") from None
    if not isinstance(body, dict) or "input_data" not in body:
        raise BadInput("Request must contain a top level key named 'input_data'.")
    if not isinstance(body.get("params") or {}, dict):
        raise BadInput("'params' must be an object.")
    return body


def _predict(body: dict[str, Any]) -> Any:
    """What the model's ``predict`` makes of the data, typed by the signature in its MLmodel file."""
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import unwrapped_predictions_to_json

    try:
        prediction = model.predict(_data(body["input_data"]), params=body.get("params") or None)
    except MlflowException as error:
        raise BadInput(f"The data does not fit the model's signature: {error.message}") from None
    text = io.StringIO()
    unwrapped_predictions_to_json(prediction, text)
    return json.loads(text.getvalue())


def _data(value: Any) -> Any:
    """A table (split orientation, or records), tensors (a list, or lists by name), or values as they are."""
    from mlflow.utils.proto_json_utils import dataframe_from_parsed_json, parse_tf_serving_input

    schema = model.metadata.get_input_schema()
    if isinstance(value, dict) and "data" in value and not value.keys() - {"columns", "index", "data"}:
        return dataframe_from_parsed_json(value, "split", schema)
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return dataframe_from_parsed_json(value, "records", schema)
    if isinstance(value, list) and schema is not None and schema.has_input_names() and not schema.is_tensor_spec():
        names = schema.input_names()
        return dataframe_from_parsed_json({"columns": names, "data": value}, "split", schema)
    return parse_tf_serving_input({"inputs": value}, schema)


def _chat(body: dict[str, Any]) -> Any:
    """Texts are continued, ``[text, …]``; conversations are answered, ``{"output": text}``."""
    value, settings = body["input_data"], dict(body.get("params") or {})
    if isinstance(value, dict) and "input_string" in value:
        parameters = value.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise BadInput("'parameters' must be an object.")
        settings = {**parameters, **settings}
        given = value["input_string"]
        if isinstance(given, str):
            return {"output": _continue(given, {"return_full_text": False, **settings})}
        conversations = [given] if isinstance(given, list) and given and isinstance(given[0], dict) else given
        if (
            not isinstance(conversations, list)
            or not conversations
            or not all(_is_conversation(messages) for messages in conversations)
        ):
            raise BadInput("'input_string' must be a list of messages, each with 'role' and 'content'.")
        answers = [_answer(messages, settings) for messages in conversations]
        return {"output": answers[0] if len(answers) == 1 else answers}  # Guess: one chat gives a text
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput('\'input_data\' must be a list of texts, or {"input_string": [messages], "parameters": {…}}.')
    return [_continue(text, settings) for text in texts]


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
    )


def _answer(messages: list[dict[str, str]], settings: dict[str, Any]) -> str:
    # The answer alone: what was asked, which return_full_text would add, is messages and not text.
    result = _generate(messages, {**settings, "return_full_text": False})
    return str(result[0]["generated_text"])


def _continue(text: str, settings: dict[str, Any]) -> str:
    return str(_generate(text, settings)[0]["generated_text"])


def _generate(prompt: Any, settings: dict[str, Any]) -> Any:
    try:
        return pipeline(prompt, **{**GENERATION_SETTINGS, **settings})
    except (TypeError, ValueError) as error:
        raise BadInput(f"The model does not take these settings: {error}.") from None
