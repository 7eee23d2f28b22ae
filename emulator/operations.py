"""Long-running operations: what a PUT or DELETE has started, and the headers by which the SDK follows it."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING
from uuid import uuid4

from .arm.errors import ArmError
from .store import Json

if TYPE_CHECKING:
    from .control import Control

log = logging.getLogger("emulator.operations")
API_VERSION = "2023-04-01-preview"


class Operations:
    """Starts operations and records how they end. An unfinished one of an earlier process counts as failed."""

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._tasks: set[asyncio.Task[None]] = set()

    def done(self, resource: str, statuses: str = "mfeOperationsStatus") -> dict[str, str]:
        """The headers of an operation that has nothing left to do. ``statuses``: where the service answers for it."""
        id = self._begin(resource)
        self._control.store.end_operation(id)
        return self._headers(id, statuses)

    def start(self, resource: str, work: Awaitable[None]) -> dict[str, str]:
        """Run ``work`` in the background; an ArmError that it raises becomes the operation's error."""
        id = self._begin(resource)

        async def run() -> None:
            error: Json | None = None
            try:
                await work
            except ArmError as failure:
                error = {"code": failure.code, "message": failure.message}
            except asyncio.CancelledError:
                raise
            except Exception as failure:
                log.exception("operation id=%s resource=%s", id, resource)
                error = {"code": "InternalServerError", "message": str(failure)}
            self._control.store.end_operation(id, error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return self._headers(id)

    async def close(self) -> None:
        """Give up what runs; the next start's ``fail_unfinished`` says so to who asks."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def fail_unfinished(self) -> None:
        """After a restart: nobody works on these any more (deployments are started anew by themselves)."""
        for id, _ in self._control.store.unfinished_operations():
            self._control.store.end_operation(
                id,
                {
                    "code": "OperationInterrupted",
                    "message": "The local Azure was stopped in between; ask again.",
                },
            )

    def _begin(self, resource: str) -> str:
        id = f"oe:{uuid4()}"
        self._control.store.start_operation(id, resource)
        return id

    def _headers(self, id: str, statuses: str = "mfeOperationsStatus") -> dict[str, str]:
        project = self._control.home.project
        status = (
            f"{self._control.urls['arm']}/subscriptions/{project.subscription}/providers"
            f"/Microsoft.MachineLearningServices/locations/{project.location}/{statuses}/{id}"
            f"?api-version={API_VERSION}"
        )
        return {"Azure-AsyncOperation": status, "Location": status, "Retry-After": "1"}
