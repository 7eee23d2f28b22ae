"""Plays one schedule: the app in this process, over the real SDKs, against a local Azure that is really there.

What a host would do (deliver messages and events, start timers, be killed) is done here, at times of the schedule's own
clock, which jumps when nothing is due.
"""

import asyncio
import heapq
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import azure.functions as func
from azure.core.exceptions import ResourceNotFoundError
from azure.functions.timer import TimerRequest

import function_app
from emulator.events import envelopes
from function_app import azure_clients, blob_retries
from function_app.engines import clusters, command
from function_app.runs import run_id
from function_app.settings import settings
from tests.instant import dataset

from . import people
from .clock import Clock, everywhere
from .faults import Faults, Killed, between_sdk_and_network
from .messages import Message, Queue
from .schedule import ASKED, KINDS, Drop, Schedule, Wish
from .world import FINAL, World

SWEEP_EVERY = timedelta(minutes=10)
LONGEST = timedelta(days=3)  # of a schedule's time, in which everything must have ended
MOST_INVOCATIONS = 900
MOST_IN_BETWEEN = 25  # things that happen while an invocation stalls
CONTAINERS = {"DATASETS_CONTAINER": "datasets", "RUNS_CONTAINER": "runs", "REPORTS_CONTAINER": "reports"}
RECIPE = {
    "compute": {"max_nodes": 64},
    "release": {"steps": [10, 50, 100], "step_minutes": 1, "bake_minutes": 10},
    "evaluation": {"questions": [f"Who are you, {number}?" for number in range(ASKED)]},
}
FUNCTIONS = {each.get_function_name(): each.get_user_function() for each in function_app.app.get_functions()}


GATES = {"job": "train_gate", "server": "start_gate"}  # what a dataset calls the files that they wait for


class Broken(AssertionError):
    """An invariant does not hold."""


class Play:
    """One schedule, while it is played, and what is known of it when it is over."""

    def __init__(self, schedule: Schedule, home: Path, workspace_id: str) -> None:
        self.schedule = schedule
        self.model = f"chaos-{schedule.seed}"
        self.clock = Clock(datetime.now(UTC))
        self.world = World(home, workspace_id, self.model, home.parent)
        self.trace: list[str] = []
        self.runs: dict[int, str] = {}  # the run of each drop
        self.wanted: dict[str, list[str]] = {}  # what people have asked of a run that could answer it
        self.overwritten: set[int] = set()
        self.rollbacks: list[str] = []
        self.closed: set[tuple[int, str]] = set()  # the gates, of a drop's "job" or "server", that are still shut
        self.invocations = self.stalls = 0
        self.served = False
        self.faults = Faults(schedule.seed, schedule.rates, self.clock, self._race, self.note)
        self.queue = Queue(lambda: self.clock.now, self._meddle)
        self._start = self.clock.now
        self._agenda: list[tuple[datetime, int, str, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._jobs: set[str] = set()
        self._servers: set[str] = set()
        self._sent = itertools.count()
        self._events = itertools.count()
        self._deliveries = itertools.count()
        self._races = itertools.count()
        self._depth = 0
        self._broken: list[str] = []  # raised only between invocations: the app must not catch it
        self._current = ""

    def note(self, text: str) -> None:
        self.trace.append(f"{(self.clock.now - self._start).total_seconds():9.1f} {'  ' * self._depth}{text}")

    def draw(self, what: str) -> Random:
        """Chance that depends on the seed and on what is decided, and on nothing else."""
        return Random(f"{self.schedule.seed}/{what}")  # noqa: S311

    # --- the schedule ---

    def play(self) -> None:
        """Until everything has ended. Raises Broken when an invariant fails on the way, or it does not end."""
        with (
            self.containers(),
            patch.object(azure_clients, "runs_queue", lambda: self.queue),
            patch.object(blob_retries, "FIRST_PAUSE", 0),
            patch.object(blob_retries, "LONGEST_PAUSE", 0),
            everywhere(self.clock),
            between_sdk_and_network(self.faults),
        ):
            self._play()

    @contextmanager
    def containers(self) -> Iterator[None]:
        """The app with the containers of this schedule, which no other one's runs are in."""
        with patch.dict(os.environ, {name: f"{kind}-{self.schedule.seed}" for name, kind in CONTAINERS.items()}):
            settings.cache_clear()
            try:
                yield
            finally:
                settings.cache_clear()

    def _play(self) -> None:
        for name in CONTAINERS:
            azure_clients.container(os.environ[name]).create_container()
        self._datasets().upload_blob(f"{self.model}/recipe.yaml", json.dumps(RECIPE).encode())
        for drop in self.schedule.drops:
            self._later(drop.at, f"drop {drop.number}", lambda drop=drop: self._drop(drop))
        for wish in self.schedule.wishes:
            self._later(wish.at, wish.action, lambda wish=wish: self._wish(wish))
        self._later(SWEEP_EVERY.total_seconds(), "sweep", self._sweep)
        last = max([drop.at for drop in self.schedule.drops] + [wish.at for wish in self.schedule.wishes])
        while not self._over(last):
            self._next()
            if self._broken:
                raise Broken("; ".join(self._broken))
            if self.clock.now - self._start > LONGEST or self.invocations > MOST_INVOCATIONS:
                left = [f"{run.id} {run.stage} cleanup={run.cleanup}" for run in people.runs_of(self.model)
                        if not run.ended or run.unsettled]  # fmt: skip
                raise Broken(f"it does not come to an end: {left}, {self.invocations} invocations")
        self.world.settle(set())

    def _over(self, last: float) -> bool:
        if self.clock.now - self._start < timedelta(seconds=last) or self.queue.messages or self.queue.poison:
            return False
        if any(kind not in ("sweep",) for _, _, kind, _ in self._agenda):
            return False
        known = {run.id: run for run in people.runs_of(self.model)}
        if any(not run.ended or run.unsettled for run in known.values()):
            return False
        # A file whose event was lost, and that the sweep has not found yet.
        return all(id in known or number in self.overwritten for number, id in self.runs.items())

    def _later(self, seconds: float, kind: str, what: Callable[[], None]) -> None:
        at = self.clock.now + timedelta(seconds=seconds)
        heapq.heappush(self._agenda, (at, next(self._numbers), kind, what))

    def _next(self) -> None:
        """Go to whatever is due first, and do it."""
        due, message = self._due()
        poison = self.queue.poison[0].due if self.queue.poison else None
        if due > self.clock.now:
            if due - self.clock.now > timedelta(seconds=1):
                self.world.settle(self._shut())
            self.clock.now = due
        if poison == due:
            self._bury(self.queue.poison.pop(0))
        elif message and message.due == due:
            self.deliver(message)
        else:
            _, _, _, what = heapq.heappop(self._agenda)
            what()
        self._look()

    def _due(self) -> tuple[datetime, Message | None]:
        """The time of what comes next, and the first message."""
        message = self.queue.next()
        poison = self.queue.poison[0].due if self.queue.poison else None
        return min(filter(None, (self._agenda[0][0], message.due if message else None, poison))), message

    # --- what the host does ---

    def deliver(self, message: Message) -> None:
        """One invocation of advance_run, as the host makes it."""
        message.taken = True
        message.dequeued += 1
        if message.dequeued > 5:
            message.dequeued = 5
            self.queue.failed(message)
            return
        run, self._current = self._current, message.run
        self.note(f"advance {self._alias(message.run)} (try {message.dequeued})")
        try:
            self._invoke("advance_run", message)
        except Killed:
            self.queue.abandoned(message)
        except Exception as error:
            self.note(f"raised {type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}")
            self.queue.failed(message)
        else:
            self.queue.messages.remove(message)
        finally:
            self._current = run

    def _invoke(self, function: str, argument: Any) -> None:
        """Call a function of the app, with the clock that its machine has, among faults."""
        self.invocations += 1
        random = self.draw(f"invocation {next(self._deliveries)}")
        before = (self.clock.skew, self.faults.active)
        self.clock.skew = timedelta(seconds=random.uniform(-1, 1) * self.schedule.skew)
        self.faults.active = True
        self._depth += 1
        try:
            result = FUNCTIONS[function](argument)
            if asyncio.iscoroutine(result):
                asyncio.run(result)
        except Killed:
            self.note("killed")
            command.forget()  # what a process remembers
            clusters.forget()
            raise
        finally:
            self._depth -= 1
            self.clock.skew, self.faults.active = before

    def _sweep(self) -> None:
        self._later(SWEEP_EVERY.total_seconds(), "sweep", self._sweep)
        self._guarded("sweep", TimerRequest())

    def _bury(self, message: Message) -> None:
        self.note(f"bury {self._alias(message.run)}")
        try:
            self._guarded("bury_run", message)
        except Broken:
            self.queue.poison.append(message)

    def _guarded(self, function: str, argument: Any) -> None:
        try:
            self._invoke(function, argument)
        except Killed:
            pass
        except Exception as error:
            self.note(f"{function} raised {type(error).__name__}")

    def _race(self) -> None:
        """This invocation stalls, and the world goes on: another invocation of the same run, and whatever is due."""
        if self._depth > 1 or command._remembered.uploading.locked():
            return
        random = self.draw(f"race {next(self._races)}")
        self.stalls += 1
        before = (self.clock.skew, self.faults.active)
        self.clock.skew, self.faults.active = timedelta(0), False
        at = self.clock.now
        message = Message(-next(self._numbers), f'{{"run_id": "{self._current}"}}', at, at)
        self.queue.messages.append(message)
        self.deliver(message)
        ends = at + timedelta(seconds=random.choice([0, 0, 30, 200, 550]))  # host.json gives it ten minutes
        for _ in range(MOST_IN_BETWEEN):
            if self._broken or self._due()[0] > ends:
                break
            self._next()
        self.note("and the one that has stalled goes on")
        self.clock.skew, self.faults.active = before

    def _meddle(self, message: Message, queue: Queue) -> bool:
        """Whether the message is kept, when the app sends it."""
        random = self.draw(f"message {next(self._sent)}")
        if random.random() < self.schedule.lose_messages:
            self.note(f"lost: message for {self._alias(message.run)}")
            return False
        if random.random() < self.schedule.repeat_messages:
            queue.again(message, timedelta(seconds=random.choice([0, 40])))
        return True

    # --- what happens in the world ---

    def _drop(self, drop: Drop) -> None:
        behaviour, _ = KINDS[drop.kind]
        number = self._source(drop)
        if drop.twin_of >= 0:
            behaviour, _ = KINDS[self.schedule.drops[number].kind]
        gates = {gate: str(self.world.gate(f"{number}-{what}")) for what, gate in GATES.items()}
        content = dataset(f"data {number}", **behaviour, **gates)
        if drop.kind == "invalid":
            content += b'{"messages": [}\n'
        metadata = {"recipe_gate_rule": "manual"} if drop.manual else {}
        name = f"{self.model}/{drop.file}"
        blob = self._datasets().get_blob_client(name)
        answer = blob.upload_blob(content, overwrite=True, metadata=metadata)
        etag = str(answer["etag"]).strip('"')
        self.overwritten |= {d.number for d in self.schedule.drops[: drop.number] if d.file == drop.file}
        id = self.runs[drop.number] = run_id(self.model, name, etag)
        self.faults.aliases[id.rpartition("-")[2]] = f"run{drop.number}"
        if drop.twin_of < 0:
            self.closed |= {(drop.number, what) for what in GATES}
        self.note(f"drop {drop.number} {drop.kind} as {id}")
        self.clock.now += timedelta(seconds=2)  # storage's times have whole seconds
        event = envelopes.blob_created(
            "topic", settings().datasets_container, name, api="PutBlob", etag=etag, content_type="", content_length=1,
            blob_type="BlockBlob", url="",
        )  # fmt: skip
        self._publish("on_dataset_uploaded", event)

    def _wish(self, wish: Wish) -> None:
        """What cannot be done now is asked for again later, a few times; a retry waits for the end."""
        if wish.action == "rollback":
            id = people.roll_back(self.model)
            self.note(f"rollback {id or 'cannot be'}")
            if id and id not in self.rollbacks:
                self.rollbacks.append(id)
                self.faults.aliases[id.rpartition("-")[2]] = "rollback"
            return
        if wish.action == "retire":
            id = people.retire(self.model)
            stage = "live" if id else ""
        else:
            id = self.runs[wish.drop]
            stage = people.ask(id, wish.action) or ""
        self.note(f"{wish.action} {self._alias(id)}: {stage or 'cannot be'}")
        if stage:
            self.wanted.setdefault(id, []).append(wish.action)
            if wish.action == "retire":
                self.served = False
        elif wish.action in ("approve", "reject") and not self._ended(id):
            self._later(1800, wish.action, lambda: self._wish(wish))

    def _ended(self, id: str) -> bool:
        found = next((run for run in people.runs_of(self.model) if run.id == id), None)
        return found.ended if found else self._number(id) in self.overwritten

    def _publish(self, function: str, event: dict[str, Any]) -> None:
        """Event Grid: at least once, mostly soon, in no order; or never."""
        number = next(self._events)
        random = self.draw(f"event {number}")
        if self.schedule.deaf or random.random() < self.schedule.lose_events:
            self.note(f"lost: event for {function}")
            return
        for _ in range(1 + (random.random() < self.schedule.repeat_events)):
            delay = random.choice([0.5, 0.5, 10, 120, 1200])
            self._later(delay, "event", lambda: self._guarded(function, _event(event)))

    def _look(self) -> None:
        """What has begun will end at its time; and is what serves, well?"""
        numbers = {id: number for number, id in self.runs.items()}
        for job in self.world.jobs():
            if job.name not in self._jobs:
                self._jobs.add(job.name)
                drop = self._drop_of(numbers, job.run)
                self._later(drop.training if drop else 1, "job", lambda job=job: self._end_job(job.run, job.name))
        for server in self.world.deployments():
            if server.name not in self._servers:
                self._servers.add(server.name)
                drop = self._drop_of(numbers, server.run)
                self._later(drop.starting if drop else 1, "server", lambda run=server.run: self._open(run, "server"))
        self._sample()

    def _drop_of(self, numbers: dict[str, int], run: str) -> Drop | None:
        return self.schedule.drops[numbers[run]] if run in numbers else None

    def _end_job(self, run: str, name: str) -> None:
        known = next((each for each in people.runs_of(self.model) if each.id == run), None)
        running = [job.name for job in self.world.jobs() if job.state not in FINAL]
        if known is not None and known.ended and not known.unsettled and name in running:
            self._broken.append(f"nobody stops the job {name} of a run that is {known.stage}")
        self._open(run, "job")
        self.world.settle(self._shut())
        job = next(job for job in self.world.jobs() if job.name == name)
        assert job.state in FINAL, f"{name} {job.state}"
        told = {"topic": "topic", "experiment_id": "1", "experiment_name": self.model, "run_id": name,
                 "run_tags": job.tags}  # fmt: skip
        events = [envelopes.run_status_changed(status=job.state, **told)]
        if job.state == "Completed":
            events.append(envelopes.run_completed(**told))
        for event in events:
            self._publish("on_job_event", event)

    def _open(self, run: str, what: str) -> None:
        """Let the job of a run, or its server, go on. A twin has its data, and so its gates, from the other."""
        number = self._number(run)
        if number is not None:
            source = self._source(self.schedule.drops[number])
            self.world.gate(f"{source}-{what}").touch()
            self.closed.discard((source, what))
            self.note(f"{what} of {self._alias(run)} may go on")

    def _shut(self) -> set[str]:
        """The jobs and servers that wait, as World.settle wants them."""
        sources = {id: self._source(self.schedule.drops[number]) for number, id in self.runs.items()}
        return {f"{id}/{what}" for id, source in sources.items() for what in GATES if (source, what) in self.closed}

    def _source(self, drop: Drop) -> int:
        return drop.number if drop.twin_of < 0 else drop.twin_of

    def _number(self, run: str) -> int | None:
        return next((number for number, id in self.runs.items() if id == run), None)

    def _alias(self, id: str) -> str:
        return self.faults.aliases.get(id.rpartition("-")[2], id)

    def _datasets(self) -> Any:
        return azure_clients.container(settings().datasets_container)

    # --- what must hold at every moment ---

    def _sample(self) -> None:
        """Once a model has served, the traffic never leaves it on nothing that is well."""
        self.served = self.served or self._live_record()
        if not self.served:
            return
        there = self.world.deployments()
        states = {deployment.name: deployment.state for deployment in there}
        if len({deployment.run for deployment in there}) < len(there):
            self._broken.append(f"a run has two deployments: {sorted(states)}")
        for endpoint in self.world.endpoints():
            traffic = {name: share for name, share in (endpoint.properties.get("traffic") or {}).items() if share}
            if self._retiring():
                return
            if sum(traffic.values()) != 100 or any(states.get(name) != "Succeeded" for name in traffic):
                self._broken.append(f"the traffic goes to {traffic} of {states}")
        if not self.world.endpoints() and not self._retiring():
            self._broken.append("the endpoint is gone")

    def _live_record(self) -> bool:
        blob = azure_clients.container(settings().runs_container).get_blob_client(f"live/{self.model}.json")
        try:
            blob.get_blob_properties()
        except ResourceNotFoundError:
            return False
        return True

    def _retiring(self) -> bool:
        return any("retire" in asked for asked in self.wanted.values())


def _event(event: dict[str, Any]) -> func.EventGridEvent:
    return func.EventGridEvent(
        id=event["id"],
        data=event["data"],
        topic=event["topic"],
        subject=event["subject"],
        event_type=event["eventType"],
        event_time=None,
        data_version="",
    )
