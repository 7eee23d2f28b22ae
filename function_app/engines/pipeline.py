"""The engine ``pipeline``: the registry's chat_completion_pipeline fine-tunes a foundation model."""

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from azure.core.exceptions import HttpResponseError

from .. import azure_clients
from ..data_assets import register_splits
from ..errors import UserError
from ..observation import JobSeen
from ..recipe import Recipe
from ..recipe.conflicts import conflicts
from ..runs import Run, utc_now
from . import clusters, jobs, run_metrics
from .bases import REGISTRY_MODEL, registry_model
from .clusters import Cluster, check_cluster, ensure_cluster
from .machines import Machine
from .pipeline_inputs import display_name, finetune_parameters, literal, unsuitable
from .tags import lineage

log = logging.getLogger("function_app.engines")

REGISTRY, COMPONENT = "azureml", "chat_completion_pipeline"
OUTPUT = "trained_model"
STEPS = ("model_import", "preprocess", "finetune", "model_evaluation")

stopped = jobs.stopped


def check(run: Run, recipe: Recipe) -> None:
    """Raises UserError when the component cannot do what the recipe asks, or not on these machines or records."""
    if problems := conflicts(recipe):
        raise UserError(" ".join(problems))
    if (run.numbers.get("dataset") or {}).get("format") == "text":
        raise UserError('The engine pipeline trains on chats ({"messages": […]}), not on texts: use engine command.')
    model = foundation_model(recipe)
    machine = check_cluster(recipe)
    if not machine.gpus:
        raise UserError(
            f"The engine pipeline needs GPUs, and {machine.name} has none: choose another machine in"
            " compute.instance_type, such as Standard_NC24ads_A100_v4."
        )
    allowed, _ = literal(model.tags or {}, "finetune_compute_allow_list", list)
    if problem := unsuitable(machine.name, allowed):
        raise UserError(f"The engine pipeline cannot train {model.name} here: {problem}.")


def foundation_model(recipe: Recipe) -> Any:
    """The registry's model for the recipe's base_model: by its id there or, of Microsoft's on Hugging Face, its name.

    Raises UserError.
    """
    name = recipe.base_model
    if REGISTRY_MODEL.fullmatch(name):
        return registry_model(name)
    owner, _, model = name.partition("/")
    mend = f"give its id there, azureml://registries/{REGISTRY}/models/<name>, or use engine command"
    if owner != "microsoft" or not model or "/" in model:
        raise UserError(f"The engine pipeline trains models of a registry, and base_model is {name}: {mend}.")
    try:
        found = registry_model(f"azureml://registries/{REGISTRY}/models/{model}")
    except UserError:
        raise UserError(f"base_model {name} is not in the registry {REGISTRY}: {mend}.") from None
    if str((found.tags or {}).get("huggingface_model_id", name)).lower() != name.lower():
        raise UserError(f"The registry's {model} is another model than {name}: {mend}.")
    return found


def submit(run: Run, recipe: Recipe) -> str:
    """Submit the pipeline and return its page in the studio. One that exists is left alone."""
    job = jobs.existing(run.job)
    if job is None:
        remembered = clusters.remembered()
        try:
            job = _create(run, recipe)
        except HttpResponseError as error:
            if not remembered or error.status_code not in (400, 404):
                raise
            clusters.forget()  # perhaps it has been deleted since: made again
            job = _create(run, recipe)
    return str(job.studio_url or "")


def observe(run: Run) -> JobSeen | None:
    """As every job's. A pipeline has no time limit of its own in Azure, so compute.max_hours is watched here."""
    seen = jobs.observe(run)
    limit = timedelta(hours=float((run.recipe.get("compute") or {}).get("max_hours", 12)))
    if seen is not None and seen.status not in jobs.ENDED and utc_now() - run.stage_since > limit:
        return JobSeen("Failed", f"it took longer than compute.max_hours, {limit}, and was stopped")
    return seen


def results(run: Run) -> dict[str, Any]:
    """What the pipeline's steps logged: the losses at the end. It measures no base, and answers no questions."""
    measured = run_metrics.of_pipeline(run.job)
    if not measured:
        log.warning("results run_id=%s metrics=none", run.id)
    return {
        **run_metrics.as_report(measured),
        "base_model": run.recipe.get("base_model"),
        "method": run.recipe.get("method"),
        "records": {split: (run.numbers.get("dataset") or {}).get(split) for split in ("train", "eval")},
        "engine": "pipeline",
        "model_uri": f"azureml://jobs/{run.job}/outputs/{OUTPUT}",
    }


@dataclass(frozen=True)
class _Plan:
    """A pipeline as it is to be submitted."""

    model: Any
    component: Any
    parameters: dict[str, Any]
    name: str


def _create(run: Run, recipe: Recipe) -> Any:
    cluster = ensure_cluster(recipe)
    plan = _plan(run, recipe, cluster.machine)
    job = _job(run, recipe, cluster, plan)
    return jobs.put(job, experiment_name=run.model)


def _plan(run: Run, recipe: Recipe, machine: Machine) -> _Plan:
    model = foundation_model(recipe)
    component = azure_clients.registry_client(REGISTRY).components.get(COMPONENT, label="latest")
    types = {name: str(given.type) for name, given in component.inputs.items()}
    of_model, problem = literal(model.tags or {}, "model_specific_defaults", dict)
    nodes, records = recipe.compute.instance_count, int((run.numbers.get("dataset") or {}).get("train") or 0)
    parameters, notes = finetune_parameters(recipe, of_model or {}, types, records, machine.gpus * nodes)
    _, ignored = literal(model.tags or {}, "finetune_compute_allow_list", list)
    notes = [*filter(None, (problem, ignored)), *notes]
    if notes:
        run.numbers["notes"] = notes
        log.info("pipeline run_id=%s notes=%s", run.id, "; ".join(notes))
    return _Plan(model, component, parameters, display_name(model.name, run.model, parameters, machine.gpus, nodes))


def _job(run: Run, recipe: Recipe, cluster: Cluster, plan: _Plan) -> Any:
    from azure.ai.ml import Input
    from azure.ai.ml.dsl import pipeline

    splits = {split: Input(type="uri_file", path=path) for split, path in register_splits(run).items()}
    files = {"train_file_path": splits["train"]}
    if (run.numbers.get("dataset") or {}).get("eval"):  # else the component splits the training file itself
        files |= {"validation_file_path": splits["eval"], "test_file_path": splits["eval"]}

    @pipeline(name=run.job, display_name=plan.name)  # type: ignore[untyped-decorator]
    def create() -> dict[str, Any]:
        step = plan.component(
            mlflow_model_path=Input(type="mlflow_model", path=plan.model.id),
            **{f"compute_{name}": cluster.name for name in STEPS},
            **files,
            number_of_gpu_to_use_finetuning=cluster.machine.gpus,
            num_nodes_finetune=recipe.compute.instance_count,
            **plan.parameters,
        )
        return {OUTPUT: step.outputs.mlflow_model_folder}

    job = create()
    job.name, job.display_name = run.job, plan.name
    job.settings.force_rerun = True  # a repeated run trains anew
    job.settings.continue_on_step_failure = False
    job.tags = lineage(run, recipe, plan.model.id)
    return job
