"""What really runs for a component of the registry, or for a fine-tuning job: emulator.yaml names the command."""

import shlex
from fnmatch import fnmatch

from ..config import FineTuning
from ..registry import find_registry_asset
from ..store import Json
from .errors import bad_request
from .pipeline_components import REGISTRY, Component
from .routing import Call

OWN = ("azureml:", "/", "https:", "wasbs:")  # ids of models and paths that no foundation model has
NO_TRAINING = "nothing in emulator.yaml says what fine-tunes here: it needs a section 'fine_tuning'."


def backed_command(call: Call, where: str, component: Component, given: Json) -> tuple[str, Json]:
    """The one step that stands for all of a component's, and its command job. Raises ArmError.

    ``given`` are the inputs and outputs of the job that runs the component.
    """
    row = call.control.home.project.registry_components.get(component.name)
    if row is None:
        raise bad_request(
            f"Step '{where.rstrip('/')}': the registry does not show the steps of {component.name}, and emulator.yaml"
            " (registry_components) does not say what runs for it."
        )
    inputs: Json = given["inputs"]
    if row.train not in inputs:
        raise bad_request(f"{component.name} needs '{row.train}' here: JSON Lines of chat messages.")
    base = next((inputs[name] for name in row.base_model if name in inputs), None)
    if base is None:
        raise bad_request(f"{component.name} needs one of the inputs {', '.join(row.base_model)}.")
    evaluate = next((inputs[name] for name in row.evaluate if name in inputs), None)
    data = {"train": inputs[row.train], **({"evaluate": evaluate} if evaluate else {})}
    outputs = {"model": given["outputs"][row.model], "weights": given["outputs"][row.weights]}
    base_id = str(base.get("uri") or base.get("value"))
    command = training_command(call, base_id, data, outputs, _hyperparameters(call, component, inputs))
    compute = inputs.get(row.compute, {}).get("value")
    return row.step, {**command, "computeId": compute}


def _hyperparameters(call: Call, component: Component, inputs: Json) -> dict[str, str]:
    """The literal inputs that say how to train. Those at their default that training does not know are left out."""
    texts = {name: str(value["value"]) for name, value in inputs.items() if value["jobInputType"] == "literal"}
    places = ("compute_", "instance_type_", "huggingface_id")
    fine_tuning = call.control.home.project.fine_tuning
    known = {option.input for option in fine_tuning.options.values()} if fine_tuning else set()
    return {
        name: text
        for name, text in texts.items()
        if name in known or not (name.startswith(places) or text == str(component.inputs[name].get("default")))
    }


def training_command(call: Call, base_id: str, data: Json, outputs: Json, hyperparameters: dict[str, str]) -> Json:
    """A command job that fine-tunes the stand-in for the model ``base_id``. Raises ArmError."""
    project = call.control.home.project
    if project.fine_tuning is None:
        raise bad_request(f"The job cannot run: {NO_TRAINING}")
    base = stand_in(call, base_id)
    options, ignored = _options(project.fine_tuning, hyperparameters)
    notes = [
        f"The base model {base_id} is not on this machine: '{base}' stands in for it (emulator.yaml, base_models)."
    ]
    if ignored:
        notes.append(f"Hyperparameters that this training does not have: {', '.join(ignored)}.")
    command = project.fine_tuning.command.replace("{base}", shlex.quote(base)).replace("{options}", options)
    echo = " && ".join(f"echo {shlex.quote(note)}" for note in notes)
    return {
        "command": f"{echo} && {command}",
        "environmentId": project.fine_tuning.environment,
        "environmentVariables": {"PYTHONPATH": str(project.root / project.fine_tuning.python_path)},
        "inputs": data,
        "outputs": outputs,
    }


def stand_in(call: Call, base_id: str) -> str:
    """What stands for a foundation model here. Raises ArmError for a model that does not exist, or has no stand-in."""
    fine_tuning = call.control.home.project.fine_tuning
    if fine_tuning is None:
        raise bad_request(f"There is no stand-in for {base_id}: {NO_TRAINING}")
    versioned = base_id if "/versions/" in base_id or "/labels/" in base_id else f"{base_id}/labels/latest"
    if base_id.startswith(REGISTRY) and find_registry_asset(call.control, versioned) is None:
        raise bad_request(f"The model {base_id} does not exist in the registry.", "NotFound")
    foundation = base_id.startswith(REGISTRY) or not base_id.startswith(OWN)
    if foundation and (row := next((r for r in fine_tuning.base_models if fnmatch(base_id, r.match)), None)):
        return row.base
    raise bad_request(
        f"The model {base_id} cannot be fine-tuned here: give one of the registry azureml, such as"
        " azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15."
    )


def _options(fine_tuning: FineTuning, hyperparameters: dict[str, str]) -> tuple[str, list[str]]:
    """Training's options as words of a command, and the hyperparameters that none of them takes."""
    words: list[str] = []
    for option, row in fine_tuning.options.items():
        given = hyperparameters.get(row.input)
        value = row.values.get(given, given) if given is not None else None
        if value is not None:
            words.append(f"--{option} {shlex.quote(value)}")
    known = {row.input for row in fine_tuning.options.values()}
    return " ".join(words), sorted(f"{name}={value}" for name, value in hyperparameters.items() if name not in known)
