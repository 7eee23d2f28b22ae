"""The engine ``command``: our training code as a command job on an Azure ML cluster."""

import shlex
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import yaml
from azure.core.exceptions import HttpResponseError

from ..data_assets import register_splits
from ..errors import UserError
from ..intake import input_url
from ..recipe import Recipe
from ..recipe.conflicts import of_machine
from ..runs import Run
from ..settings import settings
from . import clusters, collected, jobs
from .bases import Start, resolve
from .clusters import Cluster, check_cluster, ensure_cluster
from .machines import Machine
from .tags import lineage

CODE = Path(__file__).resolve().parents[2] / "training"
SHARED_MEMORY = "16g"  # where processes exchange batches and gradients; Docker's 64 MB are too little for NCCL

COMMAND = (
    "python -m training.fine_tune --config ${{inputs.recipe}}"
    " --train_file ${{inputs.train}} --eval_file ${{inputs.eval}}"
    " --model_output ${{outputs.model}} --report_output ${{outputs.report}}"
    " --checkpoint_output ${{outputs.checkpoints}}"
)

observe = jobs.observe
stopped = jobs.stopped


def check(run: Run, recipe: Recipe) -> None:
    """Raises UserError when the machines or the base model cannot be had, or cannot do what the recipe asks for."""
    machine = check_cluster(recipe)  # of a cluster that is there, the intake did not know it
    if problem := " ".join(of_machine(recipe, machine.known)) or _without_index(machine, recipe):
        raise UserError(problem)
    resolve(run, recipe)


def submit(run: Run, recipe: Recipe) -> str:
    """Submit the job and return its page in the studio. One that exists already is left alone."""
    job = jobs.existing(run.job)
    if job is None:
        remembered = bool(_remembered.code or clusters.remembered())
        try:
            job = _create(run, recipe)
        except HttpResponseError as error:
            if not remembered or error.status_code not in (400, 404):
                raise
            # Perhaps something that is remembered has been deleted since: made again, in the same way as first.
            forget()
            job = _create(run, recipe)
    return str(job.studio_url or "")


def results(run: Run) -> dict[str, Any]:
    """metrics.json, with the evaluation copied to the reports."""
    measured = collected.metrics(run)
    collected.publish_evaluation(run)
    # They are in the report and in MLflow; the record is read often and stays small.
    curves = measured.get("train")
    if isinstance(curves, dict):
        measured["train"] = {key: value for key, value in curves.items() if key not in ("curve", "eval_curve")}
    return {**measured, "engine": "command", "model_uri": f"azureml://jobs/{run.job}/outputs/model"}


def _without_index(machine: Machine, recipe: Recipe) -> str:
    """What needs another torch than the default index has, when the app knows no other index; else ""."""
    known = settings()
    if not machine.gpus or known.training_gpu_index or known.training_gpu_image.startswith("azureml:"):
        return ""
    sharding = recipe.training.sharding
    why = f"training.sharding {sharding}" if sharding in ("zero2", "zero3") else ""
    why = f"{machine.name}, with its V100," if machine.known.volta else why
    if not why:
        return ""
    return (
        f"{why} needs torch built for CUDA 12.6, which the default package index does not have: set the app setting"
        " TRAINING_GPU_INDEX to PyTorch's index of that build."
    )


@dataclass
class _Remembered:
    """What stays the same from job to job, so that a thousand files do not upload the same code a thousand times."""

    code: str = ""  # the asset's id
    environments: dict[str, str] = field(default_factory=dict)  # the asset's id by the image
    uploading: Lock = field(default_factory=Lock)  # the first jobs of a process come all at once


_remembered = _Remembered()


def forget() -> None:
    """Upload the code and the environments again, and look at the clusters again."""
    _remembered.code = ""
    _remembered.environments.clear()
    clusters.forget()


def _create(run: Run, recipe: Recipe) -> Any:
    """Submit the job, with what is remembered; upload what is not."""
    start = resolve(run, recipe)
    cluster = ensure_cluster(recipe)
    inputs = {**register_splits(run), "recipe": input_url(run, "recipe.json")}
    image = settings().training_gpu_image if cluster.machine.gpus else settings().training_image
    with ExitStack() as stack:
        if not (_remembered.code and image in _remembered.environments):
            stack.enter_context(_remembered.uploading)
        # By now another thread may have uploaded them.
        code = _remembered.code or _code_folder(stack)
        environment = _remembered.environments.get(image) or _environment(image, cluster.machine)
        job = _job(run, recipe, cluster, start, inputs, code, environment)
        made = jobs.put(job)
        # The SDK has put the ids into the job that it was given; in what comes back they are short names.
        _remembered.code, _remembered.environments[image] = str(job.code), str(job.environment)
    return made


def _code_folder(stack: ExitStack) -> str:
    """A folder to upload. The job runs `python -m training.fine_tune`, so it holds the package, not its files."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    shutil.copytree(CODE, Path(folder) / CODE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _environment(image: str, machine: Machine) -> Any:
    """A base image with our packages on top; an environment that Azure or the workspace has is taken as it is."""
    from azure.ai.ml.entities import Environment

    if image.startswith("azureml:"):
        return image
    return Environment(image=image, conda_file=_gpu_packages() if machine.gpus else CODE / "conda.yml")


def _gpu_packages() -> dict[str, Any]:
    """conda-gpu.yml, with the index that torch comes from; pip takes the build of that one, whose version is longer."""
    conda: dict[str, Any] = yaml.safe_load((CODE / "conda-gpu.yml").read_text(encoding="utf-8"))
    if index := settings().training_gpu_index:
        conda["dependencies"][-1]["pip"].insert(0, f"--extra-index-url {index}")
    return conda


def _job(
    run: Run, recipe: Recipe, cluster: Cluster, start: Start, files: dict[str, str], code: str, environment: Any
) -> Any:
    """``files``: the inputs train, eval and recipe. ``code`` and ``environment``: what to upload, or assets' ids."""
    from azure.ai.ml import Input, Output, command
    from azure.ai.ml.entities import ManagedIdentityConfiguration

    identity = settings().training_identity_id
    models = {"base": start.base, "champion": "" if start.champion == start.base else start.champion}
    processes = max(1, cluster.machine.gpus)
    job = command(
        name=run.job,
        display_name=f"{run.model} from {run.dataset.blob.rpartition('/')[2]}",
        experiment_name=run.model,
        code=code,
        command=_command(recipe, start),
        environment=environment,
        compute=cluster.name,
        identity=ManagedIdentityConfiguration(resource_id=identity) if identity else None,
        inputs={
            **{name: Input(type="uri_file", path=path, mode="download") for name, path in files.items()},
            # Mounted: gigabytes of which some processes read each file once.
            **{name: Input(type="mlflow_model", path=path, mode="ro_mount") for name, path in models.items() if path},
        },
        outputs={
            "model": Output(type="mlflow_model"),
            "report": Output(type="uri_folder"),
            # Mounted, so that what is written is there when the job starts again on another node after a preemption.
            "checkpoints": Output(type="uri_folder", mode="rw_mount"),
        },
        tags=lineage(run, recipe, start.base_model, base=start.base, champion=start.champion),
        instance_count=recipe.compute.instance_count,
        distribution=_distribution(processes) if processes * recipe.compute.instance_count > 1 else None,
        shm_size=SHARED_MEMORY if processes > 1 else None,
    )
    job.set_limits(timeout=int(3600 * recipe.compute.max_hours))
    return job


def _distribution(processes: int) -> Any:
    """One process for each GPU: Azure starts the command so many times on each node and tells each its rank."""
    from azure.ai.ml import PyTorchDistribution

    return PyTorchDistribution(process_count_per_instance=processes)


def _command(recipe: Recipe, start: Start) -> str:
    """The command line; an input that the job does not have is not in it."""
    words = [COMMAND]
    if start.base_model != recipe.base_model:  # recipe.json says `live`
        words.append(f"--base_model {shlex.quote(start.base_model)}")
    words += ["--base_path ${{inputs.base}}"] if start.base else []
    if start.champion:  # that which `live` goes on from is not fetched twice
        words.append(f"--champion_path ${{{{inputs.{'base' if start.champion == start.base else 'champion'}}}}}")
    return " ".join(words)
