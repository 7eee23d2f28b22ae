"""Which part of the job is running, told in its log, and how long each part took."""

import os
import time
from typing import Any


def is_first() -> bool:
    """Return whether this is the only process or, under torchrun, the first of them."""
    return os.environ.get("RANK", "0") == "0"


class Phases:
    """The job's clock. ``seconds`` has each phase that ended, in the order in which they began."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.running = "start"
        self._began = self._phase_began = time.monotonic()

    def begin(self, phase: str, **facts: Any) -> None:
        """End the phase that ran and print ``phase=<name> at_seconds=<since the start> …``."""
        now = time.monotonic()
        took = self.seconds.get(self.running, 0.0) + now - self._phase_began
        self.seconds[self.running] = round(took, 1)
        self.running, self._phase_began = phase, now
        self.say(phase, at_seconds=f"{now - self._began:.1f}", **facts)

    def say(self, phase: str, **facts: Any) -> None:
        """Print a line about a phase, from the first process only."""
        if is_first():
            print(" ".join([f"phase={phase}", *(f"{key}={value}" for key, value in facts.items())]), flush=True)
