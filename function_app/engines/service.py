"""The engine ``service``: fine-tuning as a service, without machines of one's own."""

import re
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml
from azure.core.exceptions import ResourceNotFoundError

from .. import azure_clients
from ..data_assets import register_splits
from ..errors import StepError, TransientError, UserError
from ..recipe import Recipe
from ..recipe.conflicts import conflicts
from ..runs import Run
from ..settings import settings
from . import jobs, run_metrics
from .bases import registry_model
from .tags import lineage

REGIONS = Path(__file__).with_name("service_regions.yaml")
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
    if problems := conflicts(recipe):
        raise UserError(" ".join(problems))
    _check_data(run)
    model = registry_model(recipe.base_model)
    tasks = {**(model.properties or {}), **(model.tags or {})}.get("finetuning-tasks", "")
    if TASK not in re.split(r"[,\s]+", str(tasks).lower()):
        raise UserError(
            f"base_model {model.name} is not to be tuned for {TASK} (its finetuning-tasks: {tasks or 'none'}); take"
            " another one."
        )
    region = str(azure_clients.ml_client().workspaces.get(settings().workspace).location)
    _check_offer(recipe.base_model, region)


def submit(run: Run, recipe: Recipe) -> str:
    """Submit the job and return its page in the studio. One that exists already is left alone."""
    job = jobs.existing(run.job) or jobs.put(_job(run, recipe))
    return str(job.studio_url or "")


observe = jobs.observe
stopped = jobs.stopped


def results(run: Run) -> dict[str, Any]:
    """What is known of the trained model: ``model_uri`` (``azureml:<name>:<version>``), and prompts to ask it.

    The losses are those that the service logged; it measures no base. Raises TransientError while the service has not
    registered the model, which it does by itself.
    """
    job = jobs.existing(run.job)
    if job is None:
        raise StepError("the fine-tuning job has disappeared from Azure ML")
    output = (job.outputs or {}).get(OUTPUT)
    name = (_model_name(output) if output else "") or run.job
    # The name is this job's own: the first version is the service's, and a later one somebody else's.
    versions = [version for version in _versions(name) if version.isdigit()]
    if not versions:
        raise TransientError(f"the service has not registered the model {name} yet")
    counts = run.numbers.get("dataset") or {}
    return {
        **run_metrics.as_report(run_metrics.of_pipeline(run.job)),
        "engine": "service",
        "base_model": run.recipe.get("base_model"),
        "model_uri": f"azureml:{name}:{min(versions, key=int)}",
        "records": {split: counts.get(split) for split in ("train", "eval")},
        "samples": _samples(run),
    }


def _check_data(run: Run) -> None:
    if (run.numbers.get("dataset") or {}).get("format") == "text":
        raise UserError('The engine service trains on chats ({"messages": […]}), not on texts: use engine command.')
    for split, written in (run.numbers.get("splits") or {}).items():
        if written.get("bytes", 0) >= MAX_FILE_BYTES:
            raise UserError(
                f"The engine service takes files of less than {MAX_FILE_BYTES >> 20} MiB, and {split}.jsonl has"
                f" {written['bytes'] >> 20} MiB: use engine command, or fewer records."
            )


def _check_offer(base_model: str, region: str) -> None:
    unversioned = base_model.partition("/versions/")[0].partition("/labels/")[0].rstrip("/")
    name, offers = unversioned.rpartition("/")[2], _offers()
    offer = offers.get(name)
    if offer is None:
        raise UserError(
            f"The engine service is not known to train {name}; it trains {', '.join(offers)}."
            f" (The list is {REGIONS.name}, to be edited when Azure offers more.)"
        )
    if region.replace(" ", "").lower() not in offer.regions:
        raise UserError(
            f"The engine service trains {name} in {', '.join(offer.regions)} only, and the workspace is in {region}:"
            f" use a workspace there, or engine command. (The list is {REGIONS.name}.)"
        )
    if offer.marketplace:
        bought = {str(each.model_id) for each in azure_clients.ml_client().marketplace_subscriptions.list()}
        if unversioned not in bought:
            raise UserError(
                f"base_model {name} is sold through Azure Marketplace, and the workspace has no subscription to it:"
                " subscribe to it in the model catalogue of ai.azure.com, or take one of Microsoft's models."
            )


def _offers() -> dict[str, Offer]:
    return msgspec.convert(yaml.safe_load(REGIONS.read_text("utf-8"))["models"], dict[str, Offer])


def _job(run: Run, recipe: Recipe) -> Any:
    from azure.ai.ml import Input, Output
    from azure.ai.ml.entities._job.finetuning.custom_model_finetuning_job import CustomModelFineTuningJob
    from azure.ai.ml.finetuning import FineTuningTaskType

    assets, model = register_splits(run), registry_model(recipe.base_model)
    held_out = bool((run.numbers.get("dataset") or {}).get("eval"))
    # Not create_finetuning_job, which does no more than this: without validation data it raises UnboundLocalError
    # (azure-ai-ml 1.35). Without it the service holds some of the training data out by itself.
    return CustomModelFineTuningJob(
        name=run.job,
        display_name=f"{run.model} from {run.dataset.blob.rpartition('/')[2]}",
        experiment_name=run.model,
        task=FineTuningTaskType.CHAT_COMPLETION,
        model=Input(type="mlflow_model", path=str(model.id)),
        training_data=Input(type="uri_file", path=assets["train"]),
        validation_data=Input(type="uri_file", path=assets["eval"]) if held_out else None,
        hyperparameters=_hyperparameters(recipe),
        # The service registers the model itself and counts its versions from 1. Under the model's own name it would
        # count on from another run's version, or an earlier job's; the job's name is no other model's.
        outputs={OUTPUT: Output(type="mlflow_model", name=run.job)},
        tags=lineage(run, recipe, str(model.id), method=""),  # the service has one of its own, whatever the recipe says
    )


def _hyperparameters(recipe: Recipe) -> dict[str, str]:
    """The three that the service has, as texts, where the recipe sets them; else the service chooses."""
    given = {
        "num_train_epochs": None if recipe.training.epochs is None else int(recipe.training.epochs),
        "learning_rate": recipe.training.learning_rate,
        "per_device_train_batch_size": recipe.training.batch_size,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _versions(name: str) -> list[str]:
    try:
        return [str(model.version) for model in azure_clients.ml_client().models.list(name=name)]
    except ResourceNotFoundError:
        return []


def _model_name(output: Any) -> str:
    """An output's name; the SDK gives it as an entity or as a dictionary."""
    return str((output.get("name") if isinstance(output, dict) else output.name) or "")


def _samples(run: Run) -> list[dict[str, Any]]:
    """Prompts to ask the new model: some that were held out, with what is expected."""
    samples: list[dict[str, Any]] = []
    if not (run.numbers.get("dataset") or {}).get("eval"):
        return samples
    split = azure_clients.container(settings().runs_container).get_blob_client(f"{run.id}/eval.jsonl")
    lines = split.download_blob(offset=0, length=SAMPLE_BYTES).readall().splitlines(keepends=True)
    for line in lines[:SAMPLES]:
        if not line.endswith(b"\n"):
            break  # the piece that was read ends in the middle of it
        *prompt, answer = cast(list[dict[str, Any]], msgspec.json.decode(line)["messages"])
        if prompt and answer["role"] == "assistant":
            messages = [{key: message[key] for key in ("role", "content")} for message in prompt]
            samples.append({"messages": messages, "expected": answer["content"]})
    return samples
