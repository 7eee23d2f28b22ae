"""What a chat costs: ours, in process and through the local Functions host, against calling the upstream directly,
LiteLLM's proxy and `pf flow serve`, in one run, with the same stub upstream and the same load generator.

The machine is noisy, so everyone is measured in turn, in short rounds, and medians count.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .chat_load import Order, Result, Target
from .chat_targets import ROOT, Running, World, bare_proxy, flow_serve, functions_host, litellm, world
from .load import percentile
from .measure import Measure

IN_PROCESS, IN_PROCESS_STREAMS = 600, 300  # calls, of each kind
ONE_ROUNDS, ONE = 6, 40  # at concurrency 1
STREAM_ROUNDS, STREAMS, STREAM = 6, 15, {"max_tokens": 16, "seed": 1}
MANY, MANY_ROUNDS, MANY_SECONDS = 32, 3, 5.0
MEMORY_FROM, MEMORY_TO = 2_000, 20_000  # requests
OPEN, LONG_STREAM = 1_000, {"max_tokens": 20, "seed": 1_000}  # streams of 19 s: long enough to open all meanwhile
IN_PROCESS_TARGET, HOST_TARGET, FIRST_TOKEN_TARGET = 1.0, 2.4, 2.0  # ms above direct
MEMORY_TARGET = 10.0  # MB
LITELLM, FLOW, BARE = "LiteLLM", "pf flow serve", "bare proxy"
RATE_TARGETS = {LITELLM: 3.0, FLOW: 2.0}
Results = dict[str, list[Result]]  # by target


def run() -> list[Measure]:
    """Start everyone, measure, stop everyone."""
    folder = Path(tempfile.mkdtemp(prefix="bench-chat-"))
    try:
        with ExitStack() as stack:
            stub = stack.enter_context(world(folder))
            rows = _in_process_rows(in_process(stub, IN_PROCESS, IN_PROCESS_STREAMS))
            host = stack.enter_context(functions_host(stub))
            rows += _memory(host)
            everyone = {
                "ours": host,
                LITELLM: stack.enter_context(litellm(stub)),
                FLOW: stack.enter_context(flow_serve(stub)),
            }
            bare = stack.enter_context(bare_proxy(stub))
            return rows + _through_the_host(stub, everyone, bare.target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def in_process(stub: World, requests: int, streams: int) -> dict[str, Any]:
    """What bench/chat_inprocess.py prints, in a process of its own."""
    asked = {"upstream": stub.upstream, "key": stub.key, "requests": requests, "streams": streams}
    command = [sys.executable, "-m", "bench.chat_inprocess", json.dumps(asked)]
    done = subprocess.run(
        command, cwd=ROOT, env=stub.environment, capture_output=True, text=True, timeout=180, check=False
    )
    if done.returncode:
        raise RuntimeError(f"bench.chat_inprocess failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def order(given: Order, limit_seconds: float = 150) -> Result:
    """Let a load generator carry out ``given``, in a process of its own."""
    command = [sys.executable, "-m", "bench.chat_load"]
    done = subprocess.run(
        command, input=json.dumps(asdict(given)) + "\n", cwd=ROOT, capture_output=True, text=True,
        timeout=limit_seconds, check=True,
    )  # fmt: skip
    return Result(**json.loads(done.stdout))


def _in_process_rows(found: dict[str, Any]) -> list[Measure]:
    rows = []
    for kind, what, target in (
        ("calls", "one chat", IN_PROCESS_TARGET),
        ("streams", "first streamed token", FIRST_TOKEN_TARGET),
    ):
        ours, direct = (statistics.median(found[kind][name]) for name in ("ours", "direct"))
        rows += [
            Measure(f"in process: {what}, p50", "ms", ours, "direct", direct),
            _added(f"in process: {what}, added", ours - direct, target),
        ]
    # What the neighbours' noise hardly touches.
    ours, direct = (statistics.median(found["calls"][f"{name}, processor"]) for name in ("ours", "direct"))
    return [*rows, Measure("in process: one chat, processor time", "ms", ours, "direct", direct)]


def _added(name: str, milliseconds: float, target: float) -> Measure:
    return Measure(name, "ms", milliseconds, target=f"≤ {target:g} ms", met=milliseconds <= target)


def _memory(host: Running) -> list[Measure]:
    """A fresh host's memory over many requests."""
    first = order(Order(host.target, MANY, MEMORY_FROM))
    before = host.process.memory_info().rss
    rest = order(Order(host.target, MANY, MEMORY_TO - MEMORY_FROM))
    grown = (host.process.memory_info().rss - before) / 1e6
    failures = first.failures + rest.failures
    name = f"RSS, after {MEMORY_FROM:,} requests and after {MEMORY_TO:,}: grown"
    return [
        Measure(f"RSS after the first {MEMORY_FROM:,} requests", "MB", before / 1e6),
        Measure(name, "MB", grown, target=f"≤ {MEMORY_TARGET:g} MB", met=grown <= MEMORY_TARGET),
        _failed(f"{MEMORY_TO:,} requests, {MANY} at once: failed", failures),
    ]


def _failed(name: str, failures: list[str]) -> Measure:
    for failure in failures[:3]:
        print(f"{name}: {failure}", flush=True)
    return Measure(name, "requests", len(failures), target="0", met=not failures)


def _through_the_host(stub: World, everyone: dict[str, Running], bare: Target) -> list[Measure]:
    targets = {"direct": stub.direct, **{name: running.target for name, running in everyone.items()}}
    alone = {**targets, BARE: bare}
    one = _in_turn(alone, ONE_ROUNDS, lambda target: Order(target, 1, ONE))
    streams = _in_turn(alone, STREAM_ROUNDS, lambda target: Order(target, 1, STREAMS, stream=STREAM))
    worked = _processor_seconds(everyone)
    many = _in_turn(targets, MANY_ROUNDS, lambda target: Order(target, MANY, seconds=MANY_SECONDS))
    processor = {
        name: 1000 * (seconds - worked[name]) / sum(len(result.total) for result in many[name])
        for name, seconds in _processor_seconds(everyone).items()
    }
    memory = {name: running.process.memory_info().rss / 1e6 for name, running in everyone.items()}
    failures = [failure for found in (one, streams, many) for each in found["ours"] for failure in each.failures]
    return [
        *_latency_rows("one chat", {name: _median(found, "total") for name, found in one.items()}, HOST_TARGET),
        *_latency_rows(
            "first streamed token", {name: _median(found, "first") for name, found in streams.items()},
            FIRST_TOKEN_TARGET,
        ),
        *_rate_rows(many),
        *_tail_rows(many),
        *(_against(f"processor time of one chat, {MANY} at once", "ms", processor, peer) for peer in RATE_TARGETS),
        _failed("of all the above: failed", failures),
        *_open_streams({name: running.target for name, running in everyone.items()}),
        *(_against(f"RSS after the rounds ({MANY} at once)", "MB", memory, name) for name in RATE_TARGETS),
        *(
            _against("start to first answer", "s", {name: each.started for name, each in everyone.items()}, name)
            for name in RATE_TARGETS
        ),
    ]  # fmt: skip


def _processor_seconds(everyone: dict[str, Running]) -> dict[str, float]:
    """What each has used so far. The machine's noise hardly touches it."""
    times = {name: running.process.cpu_times() for name, running in everyone.items()}
    return {name: each.user + each.system for name, each in times.items()}


def _in_turn(targets: dict[str, Target], rounds: int, make: Any) -> Results:
    found: Results = defaultdict(list)
    for _ in range(rounds):
        for name, target in targets.items():
            found[name].append(order(make(target)))
    for name, results in found.items():
        if not any(result.total for result in results):
            raise RuntimeError(f"{name} answered nothing: {results[0].failures[:3]}")
    return found


def _median(results: list[Result], kind: str) -> float:
    values: list[float] = [value for result in results for value in getattr(result, kind)]
    return statistics.median(values)


def _against(name: str, unit: str, values: dict[str, float], peer: str, **target: Any) -> Measure:
    return Measure(name, unit, values["ours"], peer, values[peer], **target)


def _latency_rows(what: str, medians: dict[str, float], target: float) -> list[Measure]:
    added = {name: median - medians["direct"] for name, median in medians.items()}
    aim = {"target": f"≤ {target:g} ms", "met": added["ours"] <= target}
    return [
        _against(f"through the host: {what}, p50", "ms", medians, "direct"),
        *(_against(f"through the host: {what}, added", "ms", added, peer, **aim) for peer in (*RATE_TARGETS, BARE)),
    ]


def _rate_rows(many: Results) -> list[Measure]:
    rates = {
        name: statistics.median(len(each.total) / each.seconds for each in results) for name, results in many.items()
    }
    name = f"requests a second, {MANY} at once"
    return [
        _against(name, "/s", rates, "direct"),
        *(
            _against(name, "/s", rates, peer, target=f"≥ {least:g}x", met=rates["ours"] >= least * rates[peer])
            for peer, least in RATE_TARGETS.items()
        ),
    ]


def _tail_rows(many: Results) -> list[Measure]:
    """p99 of each round, and of these the median: one hiccup of the machine is not everyone's."""

    def of(percent: int) -> dict[str, float]:
        return {
            name: statistics.median(percentile(each.total, percent) for each in results if each.total)
            for name, results in many.items()
        }

    half, tail = of(50), of(99)
    return [
        *(_against(f"p50, {MANY} at once", "ms", half, peer) for peer in RATE_TARGETS),
        *(
            _against(f"p99, {MANY} at once", "ms", tail, peer, target="≤ 0.5x", met=tail["ours"] <= tail[peer] / 2)
            for peer in RATE_TARGETS
        ),
    ]


def _open_streams(targets: dict[str, Target]) -> list[Measure]:
    found = {
        name: order(Order(target, OPEN, OPEN, stream=LONG_STREAM, warm_up=False, limit_seconds=90), 150)
        for name, target in targets.items()
    }
    ours = found["ours"]
    first = {name: percentile(result.first, 99) if result.first else float("nan") for name, result in found.items()}
    name = f"{OPEN:,} streams opened together"
    rows = [
        _failed(f"{name}: failed", ours.failures),
        Measure(
            f"{name}: open at once, at the most",
            "",
            ours.open_at_once,
            target=f"{OPEN:,}",
            met=ours.open_at_once == OPEN,
        ),
    ]
    for peer in RATE_TARGETS:
        rows.append(Measure(f"{name}: failed", "", len(ours.failures), peer, len(found[peer].failures)))
        rows.append(_against(f"{name}: first token, p99", "ms", first, peer))
    return rows
