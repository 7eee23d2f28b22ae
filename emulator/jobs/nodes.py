"""The nodes of the computes: how many jobs run at once, and which waits for whom."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..store import Resource
from .status import JobError

if TYPE_CHECKING:
    from ..store import Store

# Jobs without a compute run on nodes that Azure provides; what bounds them there is the subscription's quota.
SERVERLESS, SERVERLESS_NODES = "serverless", 4  # Guess: four serverless nodes at once


@dataclass
class Pool:
    """The nodes of one compute: what runs on them, and what waits, in the order in which it came."""

    running: dict[str, int] = field(default_factory=dict)  # job name -> nodes
    waiting: deque[tuple[str, int, asyncio.Future[None]]] = field(default_factory=deque)

    @property
    def used(self) -> int:
        return sum(self.running.values())


def job_nodes(job: Resource) -> int:
    """How many nodes a job takes."""
    return int((job.properties.get("resources") or {}).get("instanceCount") or 1)


class Nodes:
    """All pools. How many nodes a compute has is read when it matters, since an update may change it."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._pools: dict[str, Pool] = {}

    def pool(self, compute: str | None) -> Pool:
        return self._pools.setdefault((compute or SERVERLESS).lower(), Pool())

    def capacity(self, compute: str | None) -> int:
        """The most nodes that a compute may have. Raises JobError when it was deleted."""
        if not compute or compute.lower() == SERVERLESS:
            return SERVERLESS_NODES
        found = self._store.get(compute)
        if found is None:
            raise JobError(f"The compute {compute.rpartition('/')[2]} was deleted.")
        return int(found.properties["properties"]["scaleSettings"]["maxNodeCount"])

    @asynccontextmanager
    async def take(self, job: Resource) -> AsyncIterator[None]:
        """Hold the job's nodes, after those who asked before. Raises JobError when its compute can never have them."""
        compute, count = job.properties.get("computeId"), job_nodes(job)
        pool = self.pool(compute)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = (job.name, count, turn)
        pool.waiting.append(ticket)
        try:
            self.distribute(compute)
            await turn
            yield
        finally:
            if ticket in pool.waiting:
                pool.waiting.remove(ticket)
            pool.running.pop(job.name, None)
            self.distribute(compute)

    def distribute(self, compute: str | None) -> None:
        """Give free nodes to those who wait, first come, first served. To be called whenever nodes came or went."""
        pool = self.pool(compute)
        while pool.waiting:
            name, count, turn = pool.waiting[0]
            try:
                capacity = self.capacity(compute)
                if count > capacity:
                    raise JobError(f"The job asks for {count} nodes, but its compute has at most {capacity}.")
            except JobError as error:
                pool.waiting.popleft()
                if not turn.done():
                    turn.set_exception(error)
                continue
            if pool.used + count > capacity:
                return
            pool.waiting.popleft()
            if not turn.done():
                pool.running[name] = count
                turn.set_result(None)
