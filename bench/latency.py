"""How soon the loop reacts: from a file to its job, and from the job's end to the start of the deployment.

One file at a time, with a training of milliseconds; a model's first release, which makes the endpoint, counts apart.
The peer are the bare SDK calls, made by hand in this process: what the reactions cost if nobody had to notice anything.
The sweep sleeps meanwhile, and that no timer ends a wait is checked: before its deployment starts, a run is looked at
no more often than events came for it.
"""

import re
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from azure.ai.ml import Input, MLClient, Output, command
from azure.ai.ml.entities import Data, ManagedOnlineDeployment, ManagedOnlineEndpoint, Model
from azure.identity import DefaultAzureCredential

from tests import instant

from .instant import Measured, measured_azure
from .load import RECIPE, percentile
from .measure import Measure

MODELS, DROPS = 10, 4  # of each model the first release makes the endpoint, the others find it
BY_HAND = 20
TARGET = 1.0  # seconds, p95
PEER = "SDK by hand"


@dataclass(frozen=True)
class Reaction:
    """Seconds from the upload to the job, and from the job's end to the start of the deployment; the app's share of
    the first: since the record was made. ``first``: the model had no endpoint."""

    first: bool
    to_job: float
    to_deployment: float
    in_app: float


def run() -> list[Measure]:
    """Drop file after file, wait for each to be live, then make the same calls by hand."""
    with measured_azure(app_settings={"RUNS_QUEUE": "runs", "SWEEP_SCHEDULE": "0 0 4 * * *"}) as measured:
        follow(measured, "warm-up", 0)
        reactions = [follow(measured, f"late-{model:02}", number) for number in range(DROPS) for model in range(MODELS)]
        invocations = [each for each in measured.invocations() if each.run.startswith("late-")]
        peer = ByHand(measured)
        by_hand = [peer.once(number) for number in range(BY_HAND + 1)][1:]  # the first opens the connections
    jobs = [reaction.to_job for reaction in reactions]
    first = [reaction.to_deployment for reaction in reactions if reaction.first]
    later = [reaction.to_deployment for reaction in reactions if not reaction.first]
    hand_jobs, hand_deployments = [each[0] for each in by_hand], [each[1] for each in by_hand]
    wall = [1000 * each.seconds for each in invocations]
    return [
        *_pair("BlobCreated to job submitted", jobs, hand_jobs),
        Measure("  of it in the app, p50", "s", statistics.median(reaction.in_app for reaction in reactions)),
        *_pair("job completed to deployment started", later, hand_deployments),
        *_pair("  a model's first: the endpoint too", first, None),
        Measure("waits that a timer ended", "waits", 0.0, target="0", met=True),  # else follow() has raised
        Measure("one advance_run, a run at a time, p50", "ms", statistics.median(wall)),
        Measure("one advance_run, a run at a time, p95", "ms", percentile(wall, 95)),
    ]


def follow(measured: Measured, model: str, number: int) -> Reaction:
    """Drop one file and wait until its model serves and nothing is left to do."""
    if not number:
        measured.azure.drop(f"{model}/recipe.yaml", RECIPE)
    etag = measured.azure.drop(f"{model}/data-{number}.jsonl", instant.dataset(f"{model} {number}"))
    uploaded = time.time()
    record = measured.azure.wait_for_end(model, etag)
    assert record["stage"] == "live", f"{record['id']}: {record['history'][-1]}"
    at: dict[str, float] = {}
    for event in record["history"]:
        at.setdefault(event["stage"], datetime.fromisoformat(event["at"]).timestamp())
    completed = _completed(measured.azure.log("control"), record["id"])
    if number:
        _check_waits(measured, record["id"], at["deploying"])
    return Reaction(not number, at["training"] - uploaded, at["deploying"] - completed, at["training"] - at["received"])


def _completed(control: str, job: str) -> float:
    """When the local Azure set the job's status."""
    found = re.search(rf"^(\S+ \S+),(\d+) \S+ \S+ job name={job} status=Completed", control, re.MULTILINE)
    assert found, f"{job} has not completed"
    return datetime.fromisoformat(f"{found[1]}.{found[2]}").replace(tzinfo=UTC).timestamp()


def _check_waits(measured: Measured, id: str, deploying: float) -> None:
    """Raises AssertionError when the run was looked at, before its deployment, without an event that said so.

    The message for the job's next look was sent five minutes ahead; a timer or a poll would be one look more.
    """
    events = re.findall(rf"^time=(\S+) .* event id=\S+ run_id={id}$", measured.azure.log("functions"), re.MULTILINE)
    before = sum(datetime.fromisoformat(at).timestamp() < deploying for at in events)
    looks = sum(each.run == id and each.at < deploying for each in measured.invocations())
    assert 1 < looks <= before, f"{id}: looked at {looks} times before its deployment, and {before} events had come"


class ByHand:
    """The SDK's calls alone, from a blob to a submitted job, and from a job's output to a deployment on its way."""

    def __init__(self, measured: Measured) -> None:
        names = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")
        self._ml = MLClient(DefaultAzureCredential(), *(measured.azure.environment[name] for name in names))
        self._azure = measured.azure
        records = [measured.record(id) for id, (stage, _) in measured.stages("late-").items() if stage == "live"]
        self._live = records[0]
        self._job = self._ml.jobs.get(self._live["id"])
        # Not on the app's: there it would be deleted as what a newer run has replaced.
        self._endpoint = f"by-hand-{self._live['id'].rpartition('-')[2]}"
        self._ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name=self._endpoint)).result()
        name = f"r-{self._live['id'].rpartition('-')[2]}"
        self._old = next(
            self._ml.online_deployments.get(name, each.name)
            for each in self._ml.online_endpoints.list()
            if (each.tags or {}).get("model") == self._live["model"]
        )

    def once(self, number: int) -> tuple[float, float]:
        """Seconds for each of the two."""
        began = time.perf_counter()
        self._submit(f"hand-{number}-{time.time_ns()}")
        submitted = time.perf_counter() - began
        began = time.perf_counter()
        under_way = self._deploy()
        started = time.perf_counter() - began
        under_way.result()
        self._ml.online_deployments.begin_delete("by-hand", self._endpoint).result()
        return submitted, started

    def _submit(self, name: str) -> None:
        inputs = {}
        for split in ("train", "eval"):
            path = f"{self._azure.environment['Storage__blobServiceUri']}/runs/{self._live['id']}/{split}.jsonl"
            self._ml.data.create_or_update(Data(name=f"by-hand-{split}", version=name, type="uri_file", path=path))
            inputs[split] = Input(type="uri_file", path=f"azureml:by-hand-{split}:{name}")
        job = command(
            name=name,
            code=self._job.code,
            command="echo ${{inputs.train}} ${{inputs.eval}}",
            environment=self._job.environment,
            compute="training",
            inputs=inputs,
            outputs={"model": Output(type="mlflow_model")},
        )
        self._ml.jobs.create_or_update(job, skip_validation=True)

    def _deploy(self) -> Any:
        version = str(time.time_ns())
        path = f"azureml://jobs/{self._live['id']}/outputs/model"
        self._ml.models.create_or_update(Model(name="by-hand", version=version, type="mlflow_model", path=path))
        return self._ml.online_deployments.begin_create_or_update(
            ManagedOnlineDeployment(
                name="by-hand",
                endpoint_name=self._endpoint,
                model=f"azureml:by-hand:{version}",
                environment=self._old.environment,
                instance_type=self._old.instance_type,
                instance_count=1,
            )
        )


def _pair(name: str, ours: list[float], peer: list[float] | None) -> list[Measure]:
    found: list[Measure] = []
    for label, percent in (("p50", 50), ("p95", 95)):
        value, other = percentile(ours, percent), percentile(peer, percent) if peer else None
        aim: dict[str, Any] = {"target": f"≤ {TARGET:.0f} s", "met": value <= TARGET} if label == "p95" else {}
        found.append(Measure(f"{name}, {label}", "s", value, PEER if peer else "", other, **aim))
    return found
