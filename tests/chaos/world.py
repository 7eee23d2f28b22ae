"""What is really there in the local Azure, by its own book-keeping: no client, no cache, nothing hidden by a name."""

import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FINAL = ("Completed", "Failed", "Canceled")
LIMIT = 30.0  # seconds for what takes milliseconds


@dataclass(frozen=True)
class There:
    """A job, an endpoint, a deployment or a model version."""

    name: str
    properties: dict[str, Any]
    tags: dict[str, str]

    @property
    def state(self) -> str:
        return str(self.properties.get("status") or self.properties.get("provisioningState"))

    @property
    def run(self) -> str:
        return self.tags.get("run_id", "")


class World:
    """The resources of one model."""

    def __init__(self, home: Path, workspace_id: str, model: str, gates: Path) -> None:
        self._db = sqlite3.connect(f"file:{home / 'resources.db'}?mode=ro", uri=True, isolation_level=None)
        self._workspace, self._gates = workspace_id, gates
        self.model = model

    def jobs(self) -> list[There]:
        named = "json_extract(body, '$.properties.experimentName') = ?"
        return self._all(f"{self._workspace}/jobs", named, self.model)

    def endpoints(self) -> list[There]:
        return self._all(f"{self._workspace}/onlineEndpoints", "name GLOB ?", f"{self.model}-??????")

    def deployments(self) -> list[There]:
        found = []
        for endpoint in self.endpoints():
            found += self._all(f"{self._workspace}/onlineEndpoints/{endpoint.name}/deployments", "name LIKE ?", "%")
        return found

    def versions(self) -> list[There]:
        return self._all(f"{self._workspace}/models/{self.model}/versions", "name LIKE ?", "%")

    def _all(self, parent: str, condition: str, value: str) -> list[There]:
        query = f"SELECT name, body FROM resources WHERE parent = ? AND {condition} ORDER BY sequence"  # noqa: S608
        found = []
        for name, body in self._db.execute(query, (parent, value)).fetchall():
            raw = json.loads(body)
            properties = raw.get("properties") or {}
            found.append(There(name, properties, raw.get("tags") or properties.get("tags") or {}))
        return found

    def gate(self, name: str) -> Path:
        """The file that a job, or a deployment, waits for."""
        return self._gates / f"{self.model}-{name}"

    def settle(self, closed: set[str]) -> None:
        """Wait until nothing moves but what waits for a gate; ``closed``: ``<run id>/job`` and ``<run id>/server``."""
        limit = time.monotonic() + LIMIT
        while moving := self._moving(closed):
            assert time.monotonic() < limit, f"the local Azure does not come to rest: {', '.join(moving)}"
            time.sleep(0.01)

    def _moving(self, closed: set[str]) -> list[str]:
        moving = [
            f"{job.name} {job.state}"
            for job in self.jobs()
            if job.state not in FINAL and not (f"{job.run}/job" in closed and job.state == "Running")
        ]
        for there in [*self.endpoints(), *self.deployments()]:
            waiting = f"{there.run}/server" in closed and there.state in ("Creating", "Updating")
            if there.state not in ("Succeeded", "Failed", "Canceled") and not waiting:
                moving.append(f"{there.name} {there.state}")
        return moving
