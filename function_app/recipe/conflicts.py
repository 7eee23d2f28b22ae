"""What cannot be together in a recipe whatever the data: told before anything is spent, from the recipe alone."""

import re
from collections.abc import Iterator

import msgspec

from ..machines import Machine, machine
from .defaults import EMBEDDED, LIVE, effective
from .fields import Recipe

# The hyperparameters that an engine has; command has all of them. Of the pipeline: what the inputs of the registry's
# chat_completion_pipeline answer to; of the service: those of a fine-tuning job of a catalogue model.
PIPELINE = frozenset(
    [
        *("epochs", "learning_rate", "batch_size", "gradient_accumulation", "max_length", "warmup", "lr_scheduler"),
        *("weight_decay", "lora_r", "lora_alpha", "lora_dropout", "seed", "precision", "sharding", "eval_every"),
        "early_stopping",
    ]
)
SERVICE = frozenset(["epochs", "learning_rate", "batch_size"])
KEYS = {"pipeline": PIPELINE, "service": SERVICE}
REGISTRIES = "azureml://registries/"
CLUSTER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,31}")


def conflicts(recipe: Recipe, instance_type: str = "") -> list[str]:
    """What cannot be together, with what to do about it, a text each; an empty list when all can.

    ``instance_type``: the machine that the job will run on; "" when that is not known. Nothing is said of a machine
    that machines.yaml does not have.
    """
    found = [*_of_engine(recipe), *_of_training(recipe), *_of_serving(recipe), *_of_release(recipe.release.steps)]
    if recipe.engine != "service":
        found += _of_cluster(recipe.compute.cluster)
        known = machine(instance_type)
        found += of_machine(recipe, known) if known else []
    return found


def _of_engine(recipe: Recipe) -> Iterator[str]:
    engine = recipe.engine
    if engine == "command":
        return
    if recipe.base_model in (EMBEDDED, LIVE) or (engine == "service" and not recipe.base_model.startswith(REGISTRIES)):
        yield (
            f"`engine: {engine}` trains models of a registry only, not `base_model: {recipe.base_model}`; name one,"
            f" such as {REGISTRIES}azureml/models/Phi-4-mini-instruct, or take engine: command."
        )
    if recipe.gate.rule not in ("always", "manual"):
        yield (
            f"`engine: {engine}` does not measure the base model, so nothing could pass `gate.rule: {recipe.gate.rule}`"
            "; set gate: {rule: always} to let its models serve unjudged, gate: {rule: manual} to judge them yourself,"
            " or take engine: command."
        )
    given = {name: value for name, value in msgspec.structs.asdict(recipe.training).items() if value is not None}
    unknown = [f"`training.{name}`" for name in given if name not in KEYS[engine]]
    unknown += ["`method: qlora`"] if recipe.method == "qlora" else []
    if engine == "pipeline":
        unknown += ["`training.precision: bf16`"] if given.get("precision") == "bf16" else []
        unknown += ["`training.sharding: fsdp`"] if given.get("sharding") == "fsdp" else []
        # It measures once an epoch or more often.
        unknown += ["`training.eval_every` outside of 0 to 1"] if not 0 < given.get("eval_every", 1) <= 1 else []
    else:
        unknown += _machines_of_its_own(recipe)
    unknown += ["`evaluation.questions`"] if recipe.evaluation.questions else []
    if unknown:
        yield (
            f"`engine: {engine}` has nothing that answers to {', '.join(unknown)}; leave that out, or take engine:"
            f" command. What {engine} has of training: {', '.join(sorted(KEYS[engine]))}."
        )
    if not float(given.get("epochs", 1)).is_integer():
        yield f"`engine: {engine}` takes whole epochs, not {given['epochs']:g}; round training.epochs."


def _machines_of_its_own(recipe: Recipe) -> Iterator[str]:
    """The keys about machines, which the service has none of."""
    for name in ("cluster", "instance_type"):
        if getattr(recipe.compute, name):
            yield f"`compute.{name}`"
    if recipe.compute.instance_count > 1:
        yield "`compute.instance_count`"
    if recipe.compute.tier != "dedicated":
        yield "`compute.tier`"
    if recipe.serving.instance_type:
        yield "`serving.instance_type`"
    if recipe.serving.server != "auto":
        yield "`serving.server`"


def _of_training(recipe: Recipe) -> Iterator[str]:
    options = effective(recipe)
    if recipe.method == "qlora" and recipe.base_model == EMBEDDED:
        yield "`method: qlora` is for bases of billions of weights; `embedded` is tiny: take method: full."
    if options["early_stopping"] and not options["eval_every"]:
        yield (
            "`training.early_stopping` needs measurements, and with `training.eval_every: 0` there are none; set"
            " eval_every, for example to 0.5, or leave early_stopping out."
        )


def _of_serving(recipe: Recipe) -> Iterator[str]:
    """Of a machine that the recipe names; the app's own is looked at before the job is submitted."""
    known = machine(recipe.serving.instance_type)
    if recipe.serving.server == "vllm" and known and not known.gpus:
        yield (
            f"`serving.server: vllm` needs an NVIDIA GPU, and the `serving.instance_type` {known.name} has none; take"
            " one with a GPU such as Standard_NC24ads_A100_v4, or server: transformers."
        )


def _of_release(steps: list[int]) -> Iterator[str]:
    if not steps or steps[-1] != 100 or sorted(set(steps)) != steps:
        yield (
            f"`release.steps: {steps}` must rise from step to step and end with 100, such as [10, 50, 100]; [100] gives"
            " the new model all requests at once."
        )


def _of_cluster(name: str | None) -> Iterator[str]:
    if name is not None and not CLUSTER_NAME.fullmatch(name):
        yield (
            f"`compute.cluster: {name}` is no name that Azure ML takes; it has 2 to 32 letters, digits and hyphens, a"
            " letter first."
        )


def of_machine(recipe: Recipe, known: Machine) -> Iterator[str]:
    """What the recipe asks for and the machine cannot do, a text each."""
    precision, sharding = recipe.training.precision, recipe.training.sharding
    if recipe.method == "qlora" and not known.gpus:
        yield (
            f"`method: qlora` needs an NVIDIA GPU, and {known.name} has none; take method: lora, or a"
            " compute.instance_type with a GPU such as Standard_NC24ads_A100_v4."
        )
    if precision == "fp16" and not known.gpus:
        yield (
            f"`training.precision: fp16` is for GPUs, and {known.name} has none; leave training.precision out, or set"
            " fp32."
        )
    if precision == "bf16" and known.emulates_bf16:
        yield (
            f"`training.precision: bf16`: the GPUs of {known.name} only emulate it, at a fraction of their speed; leave"
            " training.precision out, or set fp16."
        )
    if recipe.engine == "command" and sharding not in (None, "none") and known.gpus * recipe.compute.instance_count < 2:
        yield (
            f"`training.sharding: {sharding}` shares the model out among several GPUs, and {known.name} has"
            f" {'one' if known.gpus else 'none'}; leave it out,"
            f"{' raise compute.instance_count,' if known.gpus else ''} or take a machine with more GPUs."
        )
