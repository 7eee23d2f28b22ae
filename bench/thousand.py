"""A thousand files dropped at once: each gets its run and one job, nothing is lost, and the app's memory stays flat.

Beside the good files there are broken ones and ones that are overwritten at once. The one node of the training cluster
is held by a job that sleeps, so the training jobs queue: what is measured is the way to them, not PyTorch. The times
begin when the upload has returned. There is no peer: nothing else that runs here takes files in.
"""

import json
import re
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import AmlCompute, Environment
from azure.identity import DefaultAzureCredential

from tests.local_azure import LocalAzure, local_azure

from .measure import Measure, rss_samples

GOOD, BROKEN, OVERWRITTEN = 1_000, 20, 20
MARKS = (200, 400, 600, 800)  # after so many files the memory is looked at, and at the end again
RECORDS = 20  # of a file
UPLOADS = 16  # at once
LIMIT = 1500.0  # seconds until each file's job must have been submitted
IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04"
Json = dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """A file, in its model's own folder. ``etags``: of its versions, the last one last; ``at``: when it was there."""

    model: str
    valid: bool
    etags: tuple[str, ...]
    at: float


def run() -> list[Measure]:
    """Drop the files into a local Azure of its own, wait for the jobs, and count."""
    home = Path(tempfile.mkdtemp(prefix="bench-thousand-"))
    try:
        with local_azure(home) as azure:
            client = hold_the_cluster(azure)
            warm_up(azure)
            with memory_of(azure, "functions") as samples:
                before = samples[-1][1]
                started = time.time()
                dropped = drop(azure, GOOD, BROKEN, OVERWRITTEN)
                uploaded = time.time() - started
                records = settle(azure, dropped, LIMIT)
                time.sleep(5)
            check(dropped, records, jobs(client))
            check_requests(dropped, records, azure.log("control"))
            stages = phases(dropped, records, azure.log("functions"))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return [*_times(uploaded, started, stages), *_memory(before, samples, stages)]


def hold_the_cluster(azure: LocalAzure) -> MLClient:
    """Occupy the training cluster's one node, so that the jobs after this one queue; returns the client that did."""
    names = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")
    client = MLClient(DefaultAzureCredential(), *(azure.environment[name] for name in names))
    cluster = AmlCompute(name="training", size="Standard_DS3_v2", min_instances=0, max_instances=1)
    client.compute.begin_create_or_update(cluster).result()
    sleeper = command(command="sleep 86400", environment=Environment(image=IMAGE), compute="training", name="sleeper")
    client.jobs.create_or_update(sleeper)
    deadline = time.monotonic() + 60
    while client.jobs.get("sleeper").status != "Running":
        assert time.monotonic() < deadline, "the job that holds the cluster does not run"
        time.sleep(0.2)
    return client


def warm_up(azure: LocalAzure) -> None:
    """One file before the others: what the first import of azure.ai.ml costs is measured by `bench loop`."""
    etag = azure.drop("warm-up/data.jsonl", content("warm-up", True))
    settle(azure, [Dropped("warm-up", True, (etag,), time.time())], 120)


def drop(azure: LocalAzure, good: int, broken: int, overwritten: int) -> list[Dropped]:
    """Upload all files as fast as Azurite takes them, the kinds mixed; a model of its own for each."""
    total = good + broken + overwritten
    kinds = ["good"] * total
    for number in range(broken + overwritten):  # spread evenly among the others
        kinds[(2 * number + 1) * total // (2 * (broken + overwritten))] = "overwritten" if number % 2 else "broken"
    # Of unequal numbers the rest is of the larger kind.
    for kind, other, wanted in (("broken", "overwritten", broken), ("overwritten", "broken", overwritten)):
        while kinds.count(kind) > wanted:
            kinds[kinds.index(kind)] = other

    def one(number: int) -> Dropped:
        model, kind = f"many-{number:04}", kinds[number]
        versions = [content(f"{model}, first", True)] if kind == "overwritten" else []
        versions.append(content(model, kind != "broken"))
        etags = tuple(azure.drop(f"{model}/data.jsonl", version) for version in versions)
        return Dropped(model, kind != "broken", etags, time.time())

    with ThreadPoolExecutor(UPLOADS) as pool:
        return list(pool.map(one, range(total)))


def content(subject: str, valid: bool) -> bytes:
    """A small file of chats; one that is not valid has a role that nobody knows and a line that is cut off."""
    lines = []
    for number in range(RECORDS):
        question = f"Where does the fact number {number} about {subject} stand in the handbook of the workshop?"
        answer = f"On page {7 * number + len(subject)}, below the picture; ask for copy {number} of {subject}."
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    if not valid:
        lines[3] = lines[3].replace("assistant", "robot")
        lines[5] = lines[5][:40]
    return "\n".join(lines).encode() + b"\n"


def settle(azure: LocalAzure, dropped: list[Dropped], limit: float) -> dict[str, list[Json]]:
    """Wait until the last version of every file has its job or its rejection; the records, by model.

    Raises AssertionError after ``limit`` seconds, naming what is missing.
    """
    runs = azure.storage.get_container_client("runs")
    wanted = {file.model: "training" if file.valid else "rejected" for file in dropped}
    pause = min(5.0, 0.2 + len(dropped) / 200)  # looking costs the two cores too
    deadline = time.monotonic() + limit
    while True:
        stages: dict[str, list[str]] = {}
        for blob in runs.walk_blobs(include=["metadata"]):  # without the splits below
            if getattr(blob, "metadata", None):
                stages.setdefault(blob.metadata["model"], []).append(blob.metadata["stage"])
        moving = {"received", "validated"}
        missing = [
            model for model, stage in wanted.items()
            if stage not in stages.get(model, []) or moving & set(stages[model])
        ]  # fmt: skip
        if not missing:
            break
        assert time.monotonic() < deadline, f"after {limit:.0f} s {len(missing)} files wait, {missing[:5]} among them"
        time.sleep(pause)
    found: dict[str, list[Json]] = {}
    names = [blob.name for blob in runs.walk_blobs() if "/" not in blob.name]
    with ThreadPoolExecutor(UPLOADS) as pool:
        for raw in pool.map(lambda name: runs.download_blob(name).readall(), names):
            record: Json = json.loads(raw)
            if record["model"] in wanted:
                found.setdefault(record["model"], []).append(record)
    return found


def jobs(client: MLClient) -> list[str]:
    """The names of all jobs but the one that holds the cluster."""
    return [str(job.name) for job in client.jobs.list() if job.name != "sleeper"]


def check(dropped: list[Dropped], records: dict[str, list[Json]], submitted: list[str]) -> None:
    """Each file has its run, nothing twice, nothing lost. Raises AssertionError that names the file."""
    submitted = [name for name in submitted if not name.startswith("warm-up-")]
    assert len(submitted) == len(set(submitted))
    expected = set()
    for file in dropped:
        by_etag = {record["dataset"]["etag"]: record for record in records[file.model]}
        assert len(by_etag) == len(records[file.model]), f"{file.model}: two runs of one version"
        assert set(by_etag) <= set(file.etags), f"{file.model}: a run of a version that was never dropped"
        last = by_etag[file.etags[-1]]
        assert last["stage"] == ("training" if file.valid else "rejected"), f"{file.model}: {last['stage']}"
        assert "report" in last["links"], f"{file.model}: no report"
        if file.valid:
            expected.add(last["id"])
        for etag in file.etags[:-1]:
            assert by_etag.get(etag, {"stage": "superseded"})["stage"] == "superseded", f"{file.model}: two are trained"
    # An overwritten version may have got as far as its job before the newer one came; then its job was cancelled.
    given_up = {record["id"] for of_model in records.values() for record in of_model if record["stage"] == "superseded"}
    assert expected <= set(submitted) <= expected | given_up, "a job is missing, or one is nobody's"


def check_requests(dropped: list[Dropped], records: dict[str, list[Json]], control: str) -> None:
    """A job's name would hide that it was made twice; the Resource Manager's log does not. Raises AssertionError.

    Two events at the same moment may both ask for the job; one of them must be told that it is there already.
    """
    made = Counter(re.findall(r"method=PUT path=\S+/jobs/(many-\S+) status=201", control))
    twice = {id: count for id, count in made.items() if count > 1}
    assert not twice, f"made more than once: {list(twice.items())[:5]}"
    trained = {record["id"] for of_model in records.values() for record in of_model if record["stage"] == "training"}
    assert trained <= set(made), "a run says that its job was submitted, and the Resource Manager has not seen it"
    assert len(trained) == sum(file.valid for file in dropped)


@dataclass(frozen=True)
class Phases:
    """When a file's version was uploaded, its event came, its record was made, it was checked, its job submitted."""

    uploaded: float
    event: float
    received: float
    validated: float
    submitted: float


def phases(dropped: list[Dropped], records: dict[str, list[Json]], functions: str) -> list[Phases]:
    """The times of every valid file's last version, by the records and by the app's log."""
    events: dict[str, float] = {}
    for at, id in re.findall(r"^time=(\S+) .* event id=\S+ run_id=(\S+)$", functions, re.MULTILINE):
        events.setdefault(id, datetime.fromisoformat(at).timestamp())
    found = []
    for file in dropped:
        if not file.valid:
            continue
        record = next(r for r in records[file.model] if r["dataset"]["etag"] == file.etags[-1])
        at = {event["stage"]: datetime.fromisoformat(event["at"]).timestamp() for event in record["history"]}
        event = min(events.get(record["id"], at["received"]), at["received"])  # the sweep may have been quicker
        found.append(Phases(file.at, event, at["received"], at["validated"], at["training"]))
    return found


@contextmanager
def memory_of(azure: LocalAzure, part: str, seconds: float = 0.25) -> Iterator[list[tuple[float, int]]]:
    """Samples (time, RSS in bytes) of one program of the local Azure, taken by a thread; the first is there at once."""
    state = json.loads((azure.home / "state.json").read_text(encoding="utf-8"))
    with rss_samples(psutil.Process(int(state["processes"][part]["pid"])), seconds) as samples:
        yield samples


def _times(uploaded: float, started: float, stages: list[Phases]) -> list[Measure]:
    total = [stage.submitted - stage.uploaded for stage in stages]
    last = max(stage.submitted for stage in stages)
    parts = {
        "upload to event": [stage.event - stage.uploaded for stage in stages],
        "event to record (the queue)": [stage.received - stage.event for stage in stages],
        "record to validated": [stage.validated - stage.received for stage in stages],
        "validated to submitted": [stage.submitted - stage.validated for stage in stages],
    }
    files = GOOD + BROKEN + OVERWRITTEN
    return [
        Measure(f"{files:,} files uploaded, {UPLOADS} at a time", "s", uploaded),
        Measure("  without a run, or with two", "files", 0.0, target="0", met=True),  # else check() has raised
        Measure("  first upload to last job submitted", "s", last - started),
        Measure("  jobs submitted", "a second", len(stages) / (last - min(stage.uploaded for stage in stages))),
        Measure("BlobCreated to job submitted, p50", "s", statistics.median(total)),
        Measure("BlobCreated to job submitted, p95", "s", statistics.quantiles(total, n=20)[18]),
        *(Measure(f"  {name}, p50", "s", statistics.median(values)) for name, values in parts.items()),
        *(Measure(f"  {name}, p95", "s", statistics.quantiles(values, n=20)[18]) for name, values in parts.items()),
    ]


def _memory(before: int, samples: list[tuple[float, int]], stages: list[Phases]) -> list[Measure]:
    moments = sorted(stage.submitted for stage in stages)
    peak, after = max(rss for _, rss in samples), samples[-1][1]
    return [
        Measure("functions host, RSS before", "MB", before / 1e6),
        *(
            Measure(f"  highest until {mark} are submitted", "MB", max(r for at, r in samples if at <= moment) / 1e6)
            for mark, moment in ((mark, moments[mark - 1]) for mark in MARKS)
        ),
        Measure("  highest of all", "MB", peak / 1e6),
        Measure("  after the last", "MB", after / 1e6),
    ]
