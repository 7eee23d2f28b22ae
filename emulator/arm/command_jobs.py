"""What a command job must bring to be accepted, and what the service adds to it."""

from typing import Any

from ..durations import seconds
from ..jobs.distribution import processes_of
from ..jobs.nodes import SERVERLESS, job_nodes
from ..jobs.status import JobError
from ..storage import UriError
from ..store import Json, Resource
from .errors import bad_request
from .jobs import MOUNTED, SUBMISSIONS, check_labels, filled_in, must_exist, normalised
from .routing import ASSET_NAME, Call

INPUT_MODES = ("ReadOnlyMount", "ReadWriteMount", "Download", "Direct", "EvalMount", "EvalDownload")
OUTPUT_MODES = ("ReadWriteMount", "Upload", "Direct")
IDENTITIES = ("AMLToken", "Managed", "UserIdentity")
# Ids of environments that Azure brings along: no resources of the workspace, and run by the table of images.
CURATED = ("azureml://registries/", "azureml:AzureML-", "azureml:AzureML/")
MAX_PROCESSES = 64
NO_SERVICES = "The local Azure does not start a job's services."


def command_job(call: Call, properties: Json) -> Json:
    """A command job as it is stored. Raises ArmError."""
    for needed in ("command", "environmentId"):
        if not isinstance(properties.get(needed), str) or not properties[needed]:
            raise bad_request(f"A command job needs '{needed}'.")
    for field in ("inputs", "outputs", "resources", "limits", "distribution", "identity", "queueSettings", "services"):
        if not isinstance(properties.get(field, {}), dict):
            raise bad_request(f"'{field}' must be an object.")
    if not all(isinstance(service, dict) for service in properties.get("services", {}).values()):
        raise bad_request("Each of the job's services must be an object.")
    check_labels(properties)
    compute = properties.get("computeId")
    if compute and compute != SERVERLESS:
        must_exist(call, compute, "compute")
    if not properties["environmentId"].startswith(CURATED):
        must_exist(call, properties["environmentId"], "environment")
    if properties.get("codeId"):
        must_exist(call, properties["codeId"], "code")
    _check_inputs(properties.get("inputs") or {})
    _check_outputs(call, properties.get("outputs") or {})
    _check_run(properties)
    services = properties.get("services") or {}
    submitted = {**COMMAND_DEFAULTS, **normalised(call, properties)}
    submitted["resources"] = {**RESOURCE_DEFAULTS, **(properties.get("resources") or {})}
    submitted["properties"] = {**submitted["properties"], **_added(properties)}
    if services:
        submitted["services"] = {name: {**given, "errorMessage": NO_SERVICES} for name, given in services.items()}
    _check_nodes(call, Resource("", call.params["name"], {"properties": submitted}, {}, "", ""))
    return submitted


# What the service's answers show of everything that was not given (recorded).
COMMAND_DEFAULTS: Json = {
    "codeId": None,
    "computeId": None,
    "componentId": None,
    "distribution": None,
    "environmentVariables": {},
    "identity": None,
    "limits": None,
    "notificationSetting": None,
    "parameters": {},
    "queueSettings": {"jobTier": "Null"},
}
RESOURCE_DEFAULTS: Json = {
    "instanceCount": 1,
    "instanceType": None,
    "properties": None,
    "shmSize": "2g",
    "dockerArgs": None,
    "dockerArgsList": None,
}


def _added(properties: Json) -> Json:
    """The properties that the service gives a command job."""
    added = {"_azureml.ComputeTargetType": "amlctrain"}
    if compute := properties.get("computeId"):
        added["_azureml.ClusterName"] = compute.rpartition("/")[2]
    if code := properties.get("codeId"):
        added["ContentSnapshotId"] = code.split("/versions/")[0].rpartition("/")[2]
    return added


def _check_inputs(inputs: Json) -> None:
    for name, given in inputs.items():
        if not isinstance(given, dict) or given.get("jobInputType") not in ("literal", *MOUNTED):
            kind = given.get("jobInputType") if isinstance(given, dict) else given
            raise bad_request(f"The input '{name}' has the type '{kind}'; known are literal, {', '.join(MOUNTED)}.")
        if given["jobInputType"] != "literal" and not (isinstance(given.get("uri"), str) and given["uri"]):
            raise bad_request(f"The input '{name}' needs a 'uri'.")
        _check_choice(f"The mode of input '{name}'", given.get("mode"), INPUT_MODES)


def _check_outputs(call: Call, outputs: Json) -> None:
    for name, given in outputs.items():
        if not isinstance(given, dict) or given.get("jobOutputType") not in MOUNTED:
            kind = given.get("jobOutputType") if isinstance(given, dict) else given
            raise bad_request(f"The output '{name}' has the type '{kind}'; known are {', '.join(MOUNTED)}.")
        _check_choice(f"The mode of output '{name}'", given.get("mode"), OUTPUT_MODES)
        asset = given.get("assetName")
        if asset is not None and not (isinstance(asset, str) and ASSET_NAME.fullmatch(asset)):
            raise bad_request(f"The output '{name}' cannot be registered as '{asset}': that is no name of an asset.")
        if given.get("uri"):
            try:
                call.control.references.locate(filled_in(str(given["uri"]), call.params["name"], name))
            except UriError as error:
                raise bad_request(f"The output '{name}' cannot be written: {error}") from None


def _check_run(properties: Json) -> None:
    limits, identity = properties.get("limits") or {}, properties.get("identity") or {}
    if identity and identity.get("identityType") not in IDENTITIES:
        raise bad_request(f"identityType is '{identity.get('identityType')}'; known are {', '.join(IDENTITIES)}.")
    try:
        if limits.get("timeout") is not None and seconds(str(limits["timeout"])) <= 0:
            raise ValueError("The timeout must be longer than nothing.")
    except ValueError as error:
        raise bad_request(f"limits.timeout: {error}") from None
    of_resources = (properties.get("resources") or {}).get("properties") or {}
    if not isinstance(of_resources, dict):
        raise bad_request("'resources.properties' must be an object.")
    if of_resources.get("IsLocal"):
        raise bad_request("Jobs on the compute 'local' are not modelled; every compute here is this machine.")


def _check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise bad_request(f"{what} is '{value}'; known are {', '.join(choices)}.")


def _check_nodes(call: Call, job: Resource) -> None:
    """Refuse what could never run: more nodes than the compute has, or a distribution that is not modelled."""
    distribution = job.properties["distribution"] or {}
    numbers = {"resources.instanceCount": job.properties["resources"].get("instanceCount")}
    for field in ("processCountPerInstance", "workerCount", "parameterServerCount"):
        numbers[f"distribution.{field}"] = distribution.get(field)
    for field, number in numbers.items():
        low = 0 if field.endswith("parameterServerCount") else 1
        if number is not None and (not isinstance(number, int) or not low <= number <= MAX_PROCESSES):
            raise bad_request(f"{field} must be a whole number from {low} to {MAX_PROCESSES}.")
    try:
        if len(processes_of(job)) > MAX_PROCESSES:
            raise bad_request(
                f"The job has more than {MAX_PROCESSES} processes, all of which would run on this machine."
            )
        capacity = call.control.jobs.nodes.capacity(job.properties["computeId"])
    except JobError as error:
        raise bad_request(str(error)) from None
    if job_nodes(job) > capacity:
        raise bad_request(
            f"The job asks for {job_nodes(job)} nodes, but its compute has at most {capacity}: lower"
            " resources.instance_count, or update the compute's max_instances."
        )


SUBMISSIONS["Command"] = command_job
