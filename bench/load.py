"""Two hundred runs at once over twenty models, with a training of milliseconds: all end right, and what that costs.

Everything is real but the training and the serving: the Functions host, the events, the queue, Azurite and the local
Azure share this machine. There is no peer: nothing else that runs here releases models.
"""

import re
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential

from function_app.runs import BlobRunStore, DatasetVersion, Run, Stage
from tests import instant

from .instant import Invocation, Measured, measured_azure
from .measure import Measure
from .thousand import memory_of

MODELS, DROPS = 20, 10  # of each model so many files: each gets a run
UPLOADS = 16  # at once
LIMIT = 900.0  # seconds until all must have ended and cleaned up
MARKS = (50, 100, 150)  # after so many ends the memory is looked at, and at the end again
ADVANCE_TARGET = 150.0  # ms, p95 of one advance
# Storage calls of one run: about fifteen steps with a few each, and its looks while it waits. More means that it polls.
MOST_CALLS = 200
MOST_GROWTH = 10.0  # MB of the host between half of the ends and the last: more is a leak of 100 kB a run
OLD = (10, 100, 1_000)  # runs that a model has had before: a look lists them all
RECIPE = b"release: {steps: [50, 100], step_minutes: 0, bake_minutes: 0}\n"


@dataclass(frozen=True)
class Dropped:
    """A file's version, and when the upload had returned."""

    model: str
    blob: str
    etag: str
    at: float


def run() -> list[Measure]:
    """Drop the files, wait until every run has ended and nothing is left, check, and count."""
    with measured_azure() as measured:
        warm_up(measured)
        before = len(measured.invocations())
        with memory_of(measured.azure, "functions") as samples:
            started = time.time()
            dropped = drop(measured, MODELS, DROPS)
            ends = wait_for_ends(measured, len(dropped))
            seconds = time.time() - started
            time.sleep(5)
        records = check(measured, dropped)
        invocations = measured.invocations()[before:]
        listed = list_old_runs(measured)
    return [
        *_ends(records, seconds, invocations),
        *_times(invocations),
        *_calls(invocations),
        *_memory(samples, ends),
        *(Measure(f"{count:,} runs of a model listed", "ms", 1000 * seconds) for count, seconds in listed.items()),
    ]


def warm_up(measured: Measured) -> None:
    """One run before the others: the first import of azure.ai.ml, and the first upload of the code."""
    measured.azure.drop("warm-up/recipe.yaml", RECIPE)
    etag = measured.azure.drop("warm-up/data.jsonl", instant.dataset("warm-up"))
    assert measured.azure.wait_for_end("warm-up", etag)["stage"] == "live"


def drop(measured: Measured, models: int, drops: int) -> list[Dropped]:
    """Upload the recipes, then all files as fast as Azurite takes them, the models mixed."""
    for model in range(models):
        measured.azure.drop(f"load-{model:02}/recipe.yaml", RECIPE)

    def one(number: int) -> Dropped:
        model, name = f"load-{number % models:02}", f"file-{number // models:02}"
        etag = measured.azure.drop(f"{model}/{name}.jsonl", instant.dataset(f"{model} {name}"))
        return Dropped(model, f"{model}/{name}.jsonl", etag, time.time())

    with ThreadPoolExecutor(UPLOADS) as pool:
        return list(pool.map(one, range(models * drops)))


def wait_for_ends(measured: Measured, count: int) -> list[float]:
    """Wait until so many runs have ended with nothing left to do; the times at which each was first seen ended."""
    seen: dict[str, float] = {}
    deadline = time.monotonic() + LIMIT
    while True:
        stages = measured.stages("load-")
        now = time.time()
        for id, (_, settled) in stages.items():
            if settled:
                seen.setdefault(id, now)
        if len(stages) == count and all(settled for _, settled in stages.values()):
            return sorted(seen.values())
        left = Counter(stage for stage, settled in stages.values() if not settled)
        assert time.monotonic() < deadline, f"after {LIMIT:.0f} s {len(stages)} runs, of them under way: {dict(left)}"
        time.sleep(2)


def check(measured: Measured, dropped: list[Dropped]) -> list[dict[str, Any]]:
    """Every run has its right end, one job at most, and its model one deployment with all the traffic; the records.

    Raises AssertionError that names what is wrong.
    """
    records = [measured.record(id) for id in measured.stages("load-")]
    versions = {(record["dataset"]["blob"], record["dataset"]["etag"]): record for record in records}
    assert set(versions) == {(file.blob, file.etag) for file in dropped}
    assert len(records) == len(dropped)
    made = Counter(re.findall(r"method=PUT path=\S+/jobs/(load-\S+) status=201", measured.azure.log("control")))
    assert all(count == 1 for count in made.values()), f"jobs made twice: {[n for n, c in made.items() if c > 1]}"
    assert set(made) <= {record["id"] for record in records}, "a job of nobody's"
    names = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")
    client = MLClient(DefaultAzureCredential(), *(measured.azure.environment[name] for name in names))
    endpoints = {(each.tags or {}).get("model"): each for each in client.online_endpoints.list()}
    for model in {file.model for file in dropped}:
        runs = [record for record in records if record["model"] == model]
        ends = Counter(record["stage"] for record in runs)
        right = ends["live"] == 1 and set(ends) <= {"live", "retired", "superseded"}
        assert right, f"{model}: {dict(ends)}"
        live = next(record for record in runs if record["stage"] == "live")
        newest = max(record["dataset"]["uploaded_at"] for record in runs)
        assert live["dataset"]["uploaded_at"] == newest, f"{model}: an older file's model serves"
        endpoint = endpoints[model]
        deployments = [each.name for each in client.online_deployments.list(endpoint.name)]
        assert deployments == [f"r-{live['id'].rpartition('-')[2]}"], f"{model}: deployments {deployments}"
        assert endpoint.traffic == {deployments[0]: 100}, f"{model}: traffic {endpoint.traffic}"
    return records


def list_old_runs(measured: Measured) -> dict[int, float]:
    """Seconds of the app's listing of a model's runs, the median of five, by the number of runs."""
    container = measured.azure.storage.get_container_client("runs")
    store = BlobRunStore(container)

    def old(number: int) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
        version = DatasetVersion(f"old/{number}.jsonl", f"0x{number}", 1, at)
        run = Run(id=f"old-{number:012x}", model="old", dataset=version, received_at=at, fingerprint=f"{number:064}")
        run.move(Stage.SUPERSEDED, "an old one", at)
        store.create(run)
        container.upload_blob(f"{run.id}/train.jsonl", b"{}")  # beside each record there is a folder

    found, made = {}, 0
    for count in OLD:
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(old, range(made, count)))
        made, times = count, []
        for _ in range(5):
            began = time.perf_counter()
            assert sum(1 for _ in store.summaries("old-")) == count
            times.append(time.perf_counter() - began)
        found[count] = statistics.median(times)
    return found


def _ends(records: list[dict[str, Any]], seconds: float, invocations: list[Invocation]) -> list[Measure]:
    ends = Counter(record["stage"] for record in records)
    measures = [
        Measure(f"{len(records)} runs of {MODELS} models at once, to their ends", "s", seconds),
        Measure("  with a wrong end, or anything twice", "runs", 0.0, target="0", met=True),  # else check() has raised
    ]
    measures += [Measure(f"  {end}", "runs", float(count)) for end, count in ends.most_common()]
    measures.append(Measure("  trained", "runs", float(sum("job" in record["links"] for record in records))))
    return [*measures, Measure("  invocations of advance_run", "a run", len(invocations) / len(records))]


def _times(invocations: list[Invocation]) -> list[Measure]:
    wall = [1000 * each.seconds for each in invocations]
    cpu = [1000 * each.cpu for each in invocations]
    p95 = percentile(wall, 95)
    return [
        Measure("one advance_run, p50", "ms", statistics.median(wall)),
        Measure("one advance_run, p95", "ms", p95, target=f"≤ {ADVANCE_TARGET:.0f} ms", met=p95 <= ADVANCE_TARGET),
        Measure("  its processor time, p50", "ms", statistics.median(cpu)),
        Measure("  its processor time, p95", "ms", percentile(cpu, 95)),
    ]


def _calls(invocations: list[Invocation]) -> list[Measure]:
    of_run: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for each in invocations:
        of_run[each.run] += each.storage_calls
        kinds.update(each.calls)
    counts = list(of_run.values())
    return [
        Measure("storage calls of a run, median", "calls", statistics.median(counts)),
        Measure("  p95", "calls", percentile([float(count) for count in counts], 95)),
        Measure("  most", "calls", float(max(counts)), target=f"≤ {MOST_CALLS}", met=max(counts) <= MOST_CALLS),
        *(Measure(f"  {kind}, mean", "a run", count / len(counts)) for kind, count in sorted(kinds.items())),
    ]


def _memory(samples: list[tuple[float, int]], ends: list[float]) -> list[Measure]:
    highest = max(rss for _, rss in samples) / 1e6
    half = max(rss for at, rss in samples if at <= ends[len(ends) // 2 - 1]) / 1e6
    growth, target = highest - half, f"≤ {MOST_GROWTH:.0f} MB"
    return [
        Measure("functions host, RSS before", "MB", samples[0][1] / 1e6),
        *(
            Measure(f"  highest until {mark} have ended", "MB", max(rss for at, rss in samples if at <= moment) / 1e6)
            for mark, moment in ((mark, ends[mark - 1]) for mark in MARKS)
        ),
        Measure("  highest of all", "MB", highest),
        Measure("  grown since half of them had ended", "MB", growth, target=target, met=growth <= MOST_GROWTH),
    ]


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
