"""The engine ``service``: fine-tuning as a service, without machines of one's own."""

import logging
import re
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from .. import azure_clients
from ..data_assets import register_splits
from ..errors import StepError, TransientError, UserError
from ..lifecycle import JobSeen
from ..recipe import Recipe
from ..runs import Run
from ..settings import settings

log = logging.getLogger("function_app.engines.service")

REGIONS = Path(__file__).with_name("service_regions.yaml")
REGISTRY_MODEL = re.compile(
    r"azureml://registries/(?P<registry>[^/]+)/models/(?P<name>[^/]+)"
    r"(?:/versions/(?P<version>[^/]+)|/labels/(?P<label>[^/]+))?"
)
TASK = "chat-completion"
OUTPUT = "registered_model"  # the output's name is the service's
# "The file must be less than 512 MB in size": https://learn.microsoft.com/azure/ai-foundry/how-to/fine-tune-serverless
MAX_FILE_BYTES = 512 * 1024**2
SAMPLES = 10
SAMPLE_BYTES = 1 << 18  # of the held-out split, from which the samples are taken


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of service_regions.yaml: where the service tunes a model, and whether the model is bought."""

    regions: list[str]
    marketplace: bool = False


def check(run: Run, recipe: Recipe) -> None:
    """Raise a UserError for what the service cannot do: the recipe first, then the data, then what only Azure knows.

    Quota is not checked: the service needs none of the subscription's.
    """
    match = _check_recipe(recipe)
    _check_data(run)
    model = _registry_model(match)
    region = str(azure_clients.ml_client().workspaces.get(settings().workspace).location)
    _check_offer(match, model, region)


def submit(run: Run, recipe: Recipe) -> str:
    """Submit the job under the run's id and return its page in the studio. One that exists already is left alone."""
    job = _existing(run.id) or _put(_job(run, recipe))
    return str(job.studio_url or "")


def observe(run: Run) -> JobSeen | None:
    """The job's status and, when it failed, what the service says of it."""
    job = _existing(run.id)
    if job is None:
        return None
    status = azure_clients.plain(job.status)
    if status != "Failed":
        return JobSeen(status)
    return JobSeen(status, _error(run.id) or f"the service gave no reason; see {job.studio_url}")


def stopped(run: Run) -> bool:
    """Ask the service to stop the job; True once it has ended (or never was)."""
    job = _existing(run.id)
    if job is None or job.status in ("Completed", "Failed", "Canceled"):
        return True
    if job.status != "CancelRequested":
        azure_clients.ml_client().jobs.begin_cancel(run.id)
    return False


def results(run: Run) -> dict[str, Any]:
    """What is known of the trained model: ``model_uri`` (``azureml:<name>:<version>``), and prompts to ask it.

    The service reports no loss of the base, so there is no ``eval``. Raises TransientError while the service has not
    registered the model, which it does by itself.
    """
    job = _existing(run.id)
    if job is None:
        raise StepError("the fine-tuning job has disappeared from Azure ML")
    name = _model_name(job.outputs[OUTPUT]) or run.id
    # The name is this run's own, so there is one version, unless somebody has registered another.
    versions = [model for model in azure_clients.ml_client().models.list(name=name) if model.job_name == run.id]
    if not versions:
        raise TransientError(f"the service has not registered the model {name} yet")
    oldest = min(versions, key=lambda model: int(model.version or 0))
    counts = run.numbers.get("dataset") or {}
    return {
        "base_model": run.recipe.get("base_model"),
        "model_uri": f"azureml:{name}:{oldest.version}",
        "records": {split: counts.get(split) for split in ("train", "eval")},
        "samples": _samples(run),
    }


def _check_recipe(recipe: Recipe) -> re.Match[str]:
    """The parts of the base model's id. Raises UserError."""
    match = REGISTRY_MODEL.fullmatch(recipe.base_model)
    if match is None:
        raise UserError(
            f"engine: service tunes models of a registry only; base_model is {recipe.base_model!r}. Give one such as"
            " azureml://registries/azureml/models/Phi-4-mini-instruct, or take the engine command."
        )
    if recipe.gate.rule != "always":
        raise UserError(
            f"engine: service does not measure the base model, so gate.rule: {recipe.gate.rule} could never be met."
            " Set gate: {rule: always}, or take an engine that measures it: command."
        )
    epochs = recipe.training.epochs
    if epochs is not None and not float(epochs).is_integer():
        raise UserError(f"engine: service trains whole epochs only; training.epochs is {epochs:g}.")
    return match


def _check_data(run: Run) -> None:
    counts = run.numbers.get("dataset") or {}
    if counts.get("format") == "text":
        raise UserError(
            'engine: service trains on chats only; the records here are {"text": …}. Write each as {"messages": …}, or'
            " take the engine command."
        )
    for split, written in (run.numbers.get("splits") or {}).items():
        if written.get("bytes", 0) >= MAX_FILE_BYTES:
            raise UserError(
                f"engine: service takes files of less than {MAX_FILE_BYTES >> 20} MiB; the records to"
                f" {'train on' if split == 'train' else 'measure on'} are {written['bytes'] >> 20} MiB. Take the engine"
                " command, or fewer records."
            )


def _registry_model(match: re.Match[str]) -> Any:
    """The base model in its registry. Raises UserError when there is none, or none to tune for chat."""
    from azure.ai.ml.exceptions import ValidationException

    registry, name, version = match["registry"], match["name"], match["version"]
    models = azure_clients.registry_client(registry).models
    try:
        model = models.get(name, version=version) if version else models.get(name, label=match["label"] or "latest")
    except (ResourceNotFoundError, ValidationException):  # by version and by label
        raise UserError(
            f"base_model: the registry {registry} has no model {name}" + (f", version {version}" if version else "")
            + ". Its models are listed in the model catalogue of ai.azure.com."
        ) from None  # fmt: skip
    tasks = {**(model.properties or {}), **(model.tags or {})}.get("finetuning-tasks", "")
    if TASK not in re.split(r"[,\s]+", str(tasks).lower()):
        raise UserError(
            f"base_model: {name} is not to be tuned for {TASK} (its finetuning-tasks: {tasks or 'none'}). Take another"
            " base model."
        )
    return model


def _check_offer(match: re.Match[str], model: Any, region: str) -> None:
    offers = _offers()
    name = match["name"]
    offer = offers.get(name)
    if offer is None:
        raise UserError(
            f"base_model: fine-tuning as a service is not known to take {name}; it takes {', '.join(offers)}."
            f" (The list is {REGIONS.name}, to be edited when Azure offers more.)"
        )
    if region.replace(" ", "").lower() not in offer.regions:
        raise UserError(
            f"engine: service tunes {name} in {', '.join(offer.regions)} only; the workspace is in {region}. Use a"
            f" workspace there, or take the engine command. (The list is {REGIONS.name}.)"
        )
    if offer.marketplace:
        unversioned = f"azureml://registries/{match['registry']}/models/{name}"
        bought = {str(each.model_id) for each in azure_clients.ml_client().marketplace_subscriptions.list()}
        if unversioned not in bought:
            raise UserError(
                f"base_model: {name} is sold through Azure Marketplace, and the workspace has no subscription to it."
                " Subscribe to it in the model catalogue of ai.azure.com, or take one of Microsoft's models."
            )
    log.debug("offer model=%s region=%s", model.id, region)


def _offers() -> dict[str, Offer]:
    return msgspec.convert(yaml.safe_load(REGIONS.read_text("utf-8"))["models"], dict[str, Offer])


def _existing(name: str) -> Any | None:
    try:
        return azure_clients.ml_client().jobs.get(name)
    except ResourceNotFoundError:
        return None


def _put(job: Any) -> Any:
    """The job as Azure has it; one that another invocation has just submitted counts."""
    ml = azure_clients.ml_client()
    try:
        return ml.jobs.create_or_update(job)
    except HttpResponseError as error:
        if "already exists" not in str(error):
            raise
        return ml.jobs.get(job.name)


def _job(run: Run, recipe: Recipe) -> Any:
    from azure.ai.ml import Input, Output
    from azure.ai.ml.entities._job.finetuning.custom_model_finetuning_job import CustomModelFineTuningJob
    from azure.ai.ml.finetuning import FineTuningTaskType

    assets = register_splits(run)
    held_out = bool((run.numbers.get("dataset") or {}).get("eval"))
    # Not create_finetuning_job, which does no more than this: without validation data it raises UnboundLocalError
    # (azure-ai-ml 1.35). Without it the service holds some of the training data out by itself.
    return CustomModelFineTuningJob(
        name=run.id,
        display_name=f"{run.model} from {run.dataset.blob.rpartition('/')[2]}",
        experiment_name=run.model,
        task=FineTuningTaskType.CHAT_COMPLETION,
        model=Input(type="mlflow_model", path=str(_registry_model(_check_recipe(recipe)).id)),
        training_data=Input(type="uri_file", path=assets["train"]),
        validation_data=Input(type="uri_file", path=assets["eval"]) if held_out else None,
        hyperparameters=_hyperparameters(recipe),
        # The service registers the model itself and counts its versions from 1. Under the model's own name it would
        # count on from another run's version; the run's id is no other model's name.
        outputs={OUTPUT: Output(type="mlflow_model", name=run.id)},
        tags={"model": run.model, "run_id": run.id, "dataset": run.dataset.blob, "dataset_etag": run.dataset.etag},
    )


def _hyperparameters(recipe: Recipe) -> dict[str, str]:
    """The three that the service has, as texts, where the recipe sets them; else the service chooses."""
    given = {
        "num_train_epochs": None if recipe.training.epochs is None else int(recipe.training.epochs),
        "learning_rate": recipe.training.learning_rate,
        "per_device_train_batch_size": recipe.training.batch_size,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _model_name(output: Any) -> str:
    """An output's name; the SDK gives it as an entity or as a dictionary."""
    return str((output.get("name") if isinstance(output, dict) else output.name) or "")


def _error(job: str) -> str:
    """Why a job failed. The SDK tells it only in what jobs.stream prints and raises; it has it from here."""
    details = azure_clients.ml_client().jobs._runs_operations.get_run_details(job)
    return str(details.error.error.message or "").strip() if details.error and details.error.error else ""


def _samples(run: Run) -> list[dict[str, Any]]:
    """Prompts for the new model: the recipe's questions, then some that were held out, with what is expected."""
    questions = (run.recipe.get("evaluation") or {}).get("questions") or []
    samples: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": question}], "expected": None} for question in questions
    ]
    if not (run.numbers.get("dataset") or {}).get("eval"):
        return samples[:SAMPLES]
    split = azure_clients.container(settings().runs_container).get_blob_client(f"{run.id}/eval.jsonl")
    lines = split.download_blob(offset=0, length=SAMPLE_BYTES).readall().splitlines(keepends=True)
    for line in lines[:SAMPLES]:
        if not line.endswith(b"\n"):
            break  # the piece that was read ends in the middle of it
        *prompt, answer = cast(list[dict[str, Any]], msgspec.json.decode(line)["messages"])
        if prompt and answer["role"] == "assistant":
            messages = [{key: message[key] for key in ("role", "content")} for message in prompt]
            samples.append({"messages": messages, "expected": answer["content"]})
    return samples[:SAMPLES]
