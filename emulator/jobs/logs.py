"""A job's logs: local files that grow while it runs, and append blobs under user_logs/ that follow them."""

import asyncio
import contextlib
import logging
from pathlib import Path

from azure.core.exceptions import AzureError, ResourceModifiedError

from ..storage import Location, Storage
from .status import artifact_location

log = logging.getLogger("emulator.jobs.logs")
FIRST_INTERVAL, LAST_INTERVAL = 1.0, 30.0  # seconds; Azure's studio shows a log some seconds late too
# An append blob takes 50,000 appends: the older a job, the longer its intervals, and weeks fit in.
SLOWER_AFTER = 300.0  # seconds of a job for each second of an interval


def log_names(processes: int) -> list[str]:
    """The log files of a job: one a process. A job of one process has ``std_log.txt``.

    Names like std_log_process_0.txt are the only ones that `jobs.stream` of the SDK shows.
    """
    if processes == 1:
        return ["std_log.txt"]
    width = len(str(processes - 1))  # Guess: log names count with as many digits as needed
    return [f"std_log_process_{number:0{width}}.txt" for number in range(processes)]


class JobLogs:
    """Copies the log files of one job to storage, again and again, sending only what is new."""

    def __init__(self, storage: Storage, job: str, files: list[Path]) -> None:
        self._storage = storage
        self._files = {file: artifact_location(job, f"user_logs/{file.name}") for file in files}
        self._stored: dict[Path, int] = {}

    async def follow(self, ended: asyncio.Event) -> None:
        """Copy until the job has ended. Not to be cancelled: an append that was sent may still arrive."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not ended.is_set():
            try:
                await self.copy()
            except AzureError as error:  # storage is away for a moment; the copy at the end tells when it stays away
                log.warning("logs not_copied=%s", type(error).__name__)
            interval = min(LAST_INTERVAL, max(FIRST_INTERVAL, (loop.time() - started) / SLOWER_AFTER))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await ended.wait()

    async def copy(self) -> None:
        """Send what the files have and storage has not."""
        for file, location in self._files.items():
            if file.exists() and file.stat().st_size != self._stored.get(file):
                await self._copy(file, location)

    async def _copy(self, file: Path, location: Location) -> None:
        stored = self._stored.pop(file, None)  # who is broken off here asks the blob for its length the next time
        try:
            self._stored[file] = await self._storage.append(file, location, stored)
        except ResourceModifiedError:  # an append arrived whose answer did not: the blob tells how long it is
            self._stored[file] = await self._storage.append(file, location)
