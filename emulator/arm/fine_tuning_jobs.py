"""Fine-tuning jobs: a model, data and hyperparameters; what trains them is named in emulator.yaml."""

from datetime import UTC, datetime

from ..jobs.nodes import SERVERLESS
from ..storage import UriError
from ..store import Json
from .backed_components import training_command
from .errors import ArmError, bad_request
from .jobs import SUBMISSIONS, check_labels, normalised
from .pipeline_plan import Planner, Settings, compute_id
from .routing import Call

STEP = "finetune"
OUTPUT = "registered_model"
# The service writes a task in its own way, however it was given (recorded).
TASKS = {
    "chatcompletion": "ChatCompletion",
    "textcompletion": "TextCompletion",
    "textclassification": "TextClassification",
    "questionanswering": "QuestionAnswering",
    "textsummarization": "TextSummarization",
    "tokenclassification": "TokenClassification",
    "texttranslation": "TextTranslation",
    "imageclassification": "ImageClassification",
    "imageinstancesegmentation": "ImageInstanceSegmentation",
    "imageobjectdetection": "ImageObjectDetection",
    "videomultiobjecttracking": "VideoMultiObjectTracking",
}
MODELLED = ("ChatCompletion",)


def fine_tuning_job(call: Call, properties: Json) -> Json:
    """A fine-tuning job as it is stored, with the plan of the command behind it. Raises ArmError."""
    check_labels(properties)
    details = _details(call, properties.get("fineTuningDetails"))
    compute = compute_id(call, properties.get("computeId"))
    output = _output(properties.get("outputs"))
    name, model = call.params["name"], details["model"]["uri"]
    submitted = {**DEFAULTS, **normalised(call, {**properties, "inputs": {}, "outputs": {OUTPUT: output}})}
    submitted["outputs"].pop("default")
    submitted.pop("inputs")  # its data is in the details
    submitted.update(
        fineTuningDetails=details,
        properties={**submitted["properties"], **_added(properties, details, output["assetName"])},
    )
    data = {"train": details["trainingData"]}
    if details.get("validationData"):
        data["evaluate"] = details["validationData"]
    written = {key: value for key, value in submitted["outputs"][OUTPUT].items() if key not in ("assetName", "name")}
    command = training_command(call, model, data, {"model": written}, details.get("hyperParameters") or {})
    settings = Settings(name, submitted["experimentName"], compute or SERVERLESS, "workspaceblobstore", True)
    plan = Planner(call, settings, name).plan_command(STEP, command)
    return {**submitted, "plan": plan}


DEFAULTS: Json = {
    "computeId": None,
    "componentId": None,
    "identity": None,
    "notificationSetting": None,
    "queueSettings": None,
    "resources": {"instanceTypes": []},
}


def _details(call: Call, details: object) -> Json:
    if not isinstance(details, dict):
        raise bad_request("A fine-tuning job needs 'fineTuningDetails'.")
    if details.get("modelProvider") == "AzureOpenAI":
        raise bad_request(
            "Fine-tuning of Azure OpenAI's models is not modelled by the local Azure: those models run nowhere but in"
            " Azure. Fine-tune a model of the registry azureml (modelProvider Custom)."
        )
    if details.get("modelProvider") != "Custom":
        raise bad_request(f"modelProvider '{details.get('modelProvider')}' is not known; use Custom.")
    task = TASKS.get(str(details.get("taskType")).replace("_", "").lower())
    if task is None:
        raise bad_request(f"taskType '{details.get('taskType')}' is not known; use ChatCompletion.")
    if task not in MODELLED:
        raise bad_request(
            f"Fine-tuning for the task {task} is not modelled by the local Azure; it fine-tunes for ChatCompletion."
        )
    hyperparameters = details.get("hyperParameters") or {}
    if not isinstance(hyperparameters, dict) or not all(isinstance(value, str) for value in hyperparameters.values()):
        raise bad_request("'hyperParameters' must be an object whose values are texts.")
    inputs = {
        key: _input(call, key, details.get(key), kind)
        for key, kind in (("model", "mlflow_model"), ("trainingData", "uri_file"), ("validationData", "uri_file"))
        if details.get(key) is not None or key != "validationData"
    }
    return {"validationData": None, **details, **inputs, "taskType": task}


def _input(call: Call, key: str, given: object, kind: str) -> Json:
    if not isinstance(given, dict) or not isinstance(given.get("uri"), str):
        raise bad_request(f"'fineTuningDetails.{key}' needs a 'uri'.")
    if given.get("jobInputType") != kind:
        raise bad_request(f"'fineTuningDetails.{key}' is a {given.get('jobInputType')}; it must be a {kind}.")
    if kind == "uri_file":
        try:
            call.control.references.resolve(given["uri"], kind)
        except UriError as error:
            raise bad_request(f"'fineTuningDetails.{key}': {error}", "NotFound") from None
    return {**given, "mode": given.get("mode") or "ReadOnlyMount"}


def _output(outputs: object) -> Json:
    """The model that the service registers when the job has completed."""
    output = outputs.get(OUTPUT) if isinstance(outputs, dict) else None
    name = (output.get("assetName") or output.get("name")) if isinstance(output, dict) else None
    if not isinstance(output, dict) or not name or output.get("jobOutputType") != "mlflow_model":
        raise ArmError(
            400,
            "UserError",
            f"A fine-tuning job needs the output '{OUTPUT}' of the type mlflow_model, with a name for the model.",
            "BadArgument",
        )
    return {**output, "assetName": str(name)}


def _added(properties: Json, details: Json, model: str) -> Json:
    """The properties that the service gives a fine-tuning job (recorded)."""
    base = details["model"]["uri"]
    validation = details.get("validationData")
    return {
        "PipelineType": "FineTuning",
        "original_model_id": base,
        "azureml.ModelName": base.split("/models/")[-1].partition("/")[0],
        "azureml.PipelineType": "FineTuning",
        "azureml.original_model_id": base,
        "azureml.trainingData.assetId": details["trainingData"]["uri"],
        **({"azureml.validationData.assetId": validation["uri"]} if validation else {}),
        # Guess: a fine-tuning job is MaaP on a compute or instance type of one's own, and MaaS otherwise
        "_fineTuningJobType": "MaaP" if properties.get("computeId") or properties.get("resources") else "MaaS",
        "_outputModelName": model,
        "StartTimeUtc": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
    }


SUBMISSIONS["FineTuning"] = fine_tuning_job
