"""What a pipeline job must bring to be accepted, and what the service adds to it."""

from ..store import Json
from .errors import bad_request
from .jobs import SUBMISSIONS, check_labels, must_exist, normalised
from .pipeline_components import Component, find_component, given_inputs
from .pipeline_plan import Planner, Settings, compute_id, literal_parameters
from .routing import Call

DEFAULT_DATASTORE = "workspaceblobstore"


def pipeline_job(call: Call, properties: Json) -> Json:
    """A pipeline job as it is stored, with the plan of its steps. Raises ArmError."""
    for field in ("jobs", "inputs", "outputs", "settings"):
        if not isinstance(properties.get(field, {}), dict):
            raise bad_request(f"'{field}' must be an object.")
    for field in ("inputs", "outputs"):
        if not all(isinstance(value, dict) for value in (properties.get(field) or {}).values()):
            raise bad_request(f"Each of the pipeline's {field} must be an object.")
    check_labels(properties)
    component = _component(call, properties)
    if component is not None:
        properties = {**properties, "inputs": given_inputs("pipeline", component, properties.get("inputs") or {})}
        properties["outputs"] = _outputs(component, properties.get("outputs") or {})
    settings = _settings(call, properties)
    submitted = {**PIPELINE_DEFAULTS, **normalised(call, properties)}
    # The service shows no output "default" of a pipeline (recorded); its log lies there all the same.
    submitted["outputs"].pop("default")
    submitted["properties"] = {**submitted["properties"], **_added(submitted, settings)}
    jobs = properties.get("jobs") or (component.spec.get("jobs") if component else None) or {}
    planner = Planner(call, settings, call.params["name"])
    return {**submitted, "plan": planner.plan_component(component, jobs, submitted)}


# What the service's answers show of everything that was not given (recorded).
PIPELINE_DEFAULTS: Json = {
    "computeId": None,
    "componentId": None,
    "identity": None,
    "notificationSetting": None,
    "settings": {},
    "jobs": {},
    "sourceJobId": None,
}


def _component(call: Call, properties: Json) -> Component | None:
    """The component that the whole pipeline is, if it is one. Raises ArmError."""
    if not properties.get("componentId"):
        return None
    component = find_component(call, "pipeline", properties["componentId"])
    if component.spec.get("type") != "pipeline":
        raise bad_request(
            f"The pipeline's component {component.name} is of the type '{component.spec.get('type')}', not a pipeline."
        )
    return component


def _outputs(component: Component, given: Json) -> Json:
    for name in given.keys() - component.outputs.keys():
        raise bad_request(f"The component {component.name} has no output '{name}'.")
    return {
        name: {"jobOutputType": spec.get("type"), **given.get(name, {})} for name, spec in component.outputs.items()
    }


def _settings(call: Call, properties: Json) -> Settings:
    given = properties.get("settings") or {}
    for field in ("continue_on_step_failure", "force_rerun"):
        if not isinstance(given.get(field), bool | None):
            raise bad_request(f"settings.{field} must be true or false.")
    compute = compute_id(call, given.get("default_compute") or properties.get("computeId"))
    if compute and compute != "serverless":
        must_exist(call, compute, "compute")
    datastore = str(given.get("default_datastore") or DEFAULT_DATASTORE).removeprefix("azureml:").rpartition("/")[2]
    must_exist(call, f"{call.workspace_id}/datastores/{datastore}", "datastore")
    return Settings(
        root=call.params["name"],
        experiment=properties.get("experimentName") or "Default",
        compute=compute,
        datastore=datastore,
        stop_on_failure=given.get("continue_on_step_failure") is False,  # by default it goes on (recorded)
    )


def _added(submitted: Json, settings: Settings) -> Json:
    """The properties that the service gives a pipeline job (recorded)."""
    return {
        "azureml.DevPlatv2": "true",
        "azureml.DatasetAccessMode": "Asset",
        "azureml.runsource": "azureml.PipelineRun",
        "runSource": "MFE",
        "runType": "HTTP",
        "azureml.parameters": literal_parameters(submitted["inputs"]),
        "azureml.continue_on_step_failure": str(not settings.stop_on_failure),
        "azureml.continue_on_failed_optional_input": "True",
        "azureml.enforceRerun": str(bool((submitted["settings"] or {}).get("force_rerun"))),
        "azureml.defaultComputeName": (settings.compute or "").rpartition("/")[2],
        "azureml.defaultDataStoreName": settings.datastore,
        "azureml.pipelineComponent": "pipelinerun",
    }


SUBMISSIONS["Pipeline"] = pipeline_job
