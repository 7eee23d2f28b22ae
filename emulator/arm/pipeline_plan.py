"""A pipeline as the jobs that its steps become: all that is wrong with it is found here, before any of it runs."""

import dataclasses
import json
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from uuid import uuid4

from ..store import Json
from .backed_components import backed_command
from .errors import ArmError, bad_request
from .jobs import SUBMISSIONS, normalised
from .pipeline_bindings import Scope, needed_steps
from .pipeline_components import Component, find_component, given_inputs
from .pipeline_steps import command_settings, step_inputs, step_outputs
from .routing import Call

# Kinds of steps that the SDK makes and that are not modelled, by the words of its builders.
REFUSED = (
    "sweep", "parallel", "automl", "spark", "import", "data_transfer", "if_else", "do_while", "parallel_for",
    "fl_scatter_gather",
)  # fmt: skip
OBJECTS = ("inputs", "outputs", "resources", "distribution", "limits", "identity", "environment_variables")
MAX_DEPTH = 10  # pipelines within pipelines


@dataclass(frozen=True)
class Settings:
    """What holds for all steps of a pipeline, those of pipelines within it too."""

    root: str  # the job that was submitted
    experiment: str
    compute: str | None
    datastore: str
    stop_on_failure: bool


@dataclass(frozen=True)
class Planner:
    """Plans the steps of one pipeline, whose job is called ``name``."""

    call: Call
    settings: Settings
    name: str
    path: str = ""  # before a step's name in messages: the steps that lead to this pipeline
    depth: int = 0

    def plan(self, jobs: Json, scope: Scope) -> Json:
        """What the executor needs: each step's job, its steps in an order in which they can run."""
        if not isinstance(jobs, dict) or not jobs:
            raise bad_request(f"The pipeline{' ' + self.path if self.path else ''} has no steps.")
        needs = {step: self._check(step, node, jobs) for step, node in jobs.items()}
        try:
            order = list(TopologicalSorter(needs).static_order())
        except CycleError as cycle:
            raise bad_request(f"The steps wait for each other in a circle: {' → '.join(cycle.args[1])}.") from None
        steps: Json = {}
        for step in order:
            planned = self._step(step, jobs[step], scope)
            scope.steps[step] = planned["properties"]["outputs"]
            steps[step] = {**planned, "needs": sorted(needs[step])}
        return {"steps": steps, "stop_on_failure": self.settings.stop_on_failure}

    def _check(self, step: str, node: object, jobs: Json) -> set[str]:
        """The steps before this one. Raises ArmError for one that is not modelled."""
        if not isinstance(node, dict):
            raise bad_request(f"Step '{self.path}{step}' must be an object.")
        for field in OBJECTS:
            if not isinstance(node.get(field) or {}, dict):
                raise bad_request(f"Step '{self.path}{step}': '{field}' must be an object.")
        kind = node.get("type") or "command"
        if kind in REFUSED or kind not in ("command", "pipeline"):
            raise bad_request(
                f"Step '{self.path}{step}' is of the type '{kind}', which the local Azure does not model: it runs"
                " command and pipeline components."
            )
        return needed_steps(self.path + step, node, jobs)

    def _step(self, step: str, node: Json, scope: Scope) -> Json:
        where = self.path + step
        component = find_component(self.call, where, node.get("componentId"))
        kind = component.spec.get("type")
        if kind not in ("command", "pipeline"):
            raise bad_request(
                f"Step '{where}': the component {component.name} is of the type '{kind}', which the local Azure does"
                " not model: it runs command and pipeline components."
            )
        child = str(uuid4())
        place = f"azureml://datastores/{self.settings.datastore}/paths/azureml/{child}"
        outputs = step_outputs(where, node, component, scope, place)
        versions = {name: value.pop("assetVersion", None) for name, value in outputs.items()}
        known = {"asset_versions": {name: version for name, version in versions.items() if version}}
        common: Json = {
            "displayName": str(node.get("display_name") or step),
            "experimentName": self.settings.experiment,
            "componentId": component.id,
            "inputs": given_inputs(where, component, step_inputs(where, node, scope)),
            "outputs": outputs,
            "computeId": self._compute(scope.fill_in(where, node.get("computeId"))),
            "properties": self._step_properties(component),
        }
        call = dataclasses.replace(self.call, params={**self.call.params, "name": child})
        try:
            if kind == "pipeline":
                planned = self._pipeline(call, where, component, common)
            else:
                settings = command_settings(where, node, component, scope)
                planned = {"properties": SUBMISSIONS["Command"](call, {"jobType": "Command", **common, **settings})}
        except ArmError as error:
            if f"'{where}" in error.message:  # a step within this one has said where
                raise
            raise bad_request(f"Step '{where}': {error.message}", error.inner) from None
        return {"name": child, "known": known, **planned}

    def _pipeline(self, call: Call, where: str, component: Component, common: Json) -> Json:
        """A pipeline within this one: a job whose steps are jobs in turn."""
        if self.depth >= MAX_DEPTH:
            raise bad_request(f"Step '{where}': pipelines are nested deeper than {MAX_DEPTH} levels.")
        jobs = component.spec.get("jobs") or {}
        properties = normalised(call, {"jobType": "Pipeline", "settings": {}, "jobs": jobs, **common})
        properties["outputs"].pop("default")
        settings = self.settings
        if common["computeId"]:
            settings = dataclasses.replace(settings, compute=common["computeId"])
        planner = Planner(call, settings, call.params["name"], f"{where}/", self.depth + 1)
        return {"properties": properties, "plan": planner.plan_component(component, jobs, properties)}

    def plan_component(self, component: Component | None, jobs: Json, properties: Json) -> Json:
        """The plan of a pipeline job whose steps are ``jobs``, or of what stands for a component of the registry."""
        if component is not None and component.registered and not jobs:
            step, command = backed_command(self.call, self.path or "the pipeline", component, properties)
            return self._backed(step, command)
        declared = set(component.inputs) if component else set(properties["inputs"])
        return self.plan(jobs, Scope(properties["inputs"], declared, properties["outputs"], {}))

    def _backed(self, step: str, command: Json) -> Json:
        """The plan of a pipeline that is one command of this project's own."""
        child = str(uuid4())
        call = dataclasses.replace(self.call, params={**self.call.params, "name": child})
        compute = self._compute(command.pop("computeId", None))
        common = {
            "displayName": step,
            "experimentName": self.settings.experiment,
            "computeId": compute,
            "properties": self._step_properties(None),
        }
        properties = SUBMISSIONS["Command"](call, {"jobType": "Command", **common, **command})
        planned = {"name": child, "known": {}, "properties": properties, "needs": []}
        return {"steps": {step: planned}, "stop_on_failure": True}

    def plan_command(self, step: str, command: Json) -> Json:
        """The same for a job that is no pipeline, but has one step like it: a fine-tuning job."""
        return self._backed(step, command)

    def _compute(self, given: object) -> str | None:
        return compute_id(self.call, given) or self.settings.compute

    def _step_properties(self, component: Component | None) -> Json:
        """The properties by which the service ties a step to its pipeline (recorded)."""
        module = {}
        if component is not None:
            version = component.id.rpartition("/")[2]
            module = {
                "azureml.moduleid": version,
                "azureml.moduleName": component.name,
                "azureml.moduleVersion": version,
            }
        return {
            "azureml.DevPlatv2": "true",
            "azureml.DatasetAccessMode": "Asset",
            "StepType": "PythonScriptStep",
            "ComputeTargetType": "AmlCompute",
            **module,
            "azureml.runsource": "azureml.StepRun",
            "azureml.nodeid": uuid4().hex[:8],
            "azureml.pipelinerunid": self.name,
            "azureml.pipeline": self.name,
            "azureml.rootpipelinerunid": self.settings.root,
            "azureml.pipelineComponent": "masterescloud",
        }


def compute_id(call: Call, given: object) -> str | None:
    """A compute's ARM id, also of one that is given by its name alone; None for none."""
    if not given:
        return None
    name = str(given).removeprefix("azureml:")
    if name.lower() == "serverless":
        return "serverless"
    return name if name.startswith("/") else f"{call.workspace_id}/computes/{name}"


def literal_parameters(inputs: Json) -> str:
    """The literals among a pipeline's inputs, as the service shows them in a property."""
    values = {name: value.get("value") for name, value in inputs.items() if value.get("jobInputType") == "literal"}
    return json.dumps(values)
