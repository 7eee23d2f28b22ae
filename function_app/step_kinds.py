"""The kinds of step that a run may take; lifecycle.py chooses one, steps.py does it. No I/O."""

from dataclasses import dataclass
from datetime import timedelta

from .runs import Stage


class Step:
    """Something to do. What it means is written at each kind. Every kind may be repeated."""


@dataclass(frozen=True)
class Validate(Step):
    """Read the file and the recipe, write the report and both splits."""


@dataclass(frozen=True)
class SubmitJob(Step):
    """Submit the training job (PUT under the job's name: a second time changes nothing)."""


@dataclass(frozen=True)
class CollectResults(Step):
    """Read the job's metrics into the record."""


@dataclass(frozen=True)
class CheckSafety(Step):
    """Have the evaluation's answers looked at by Azure AI Content Safety."""


@dataclass(frozen=True)
class Register(Step):
    """Register the job's model under the run's version."""


@dataclass(frozen=True)
class TakeTurn(Step):
    """Claim the model's turn to release, unless another run has just done so."""


@dataclass(frozen=True)
class CreateEndpoint(Step):
    """Start creating the model's endpoint."""


@dataclass(frozen=True)
class CreateDeployment(Step):
    """Start creating the challenger's deployment beside the champion's."""


@dataclass(frozen=True)
class Verify(Step):
    """Ask the new deployment, and no other, the evaluation's questions."""


@dataclass(frozen=True)
class ShiftTraffic(Step):
    """Send ``share`` percent of the endpoint's traffic to the new deployment, the rest to the champion."""

    share: int


@dataclass(frozen=True)
class CheckDeployment(Step):
    """Ask the new deployment again, now that it has a share of the traffic."""


@dataclass(frozen=True)
class GoLive(Step):
    """Tell the chat route, and retire the run whose model served before."""


@dataclass(frozen=True)
class Move(Step):
    """Enter a stage; nothing else to do."""

    stage: Stage
    reason: str


@dataclass(frozen=True)
class Wait(Step):
    """Nothing to do before ``delay`` has passed (or an event comes)."""

    delay: timedelta
    reason: str


@dataclass(frozen=True)
class Finish(Step):
    """End the run. What it has started and nobody uses is deleted afterwards."""

    stage: Stage
    reason: str


@dataclass(frozen=True)
class Resume(Step):
    """Take an ended run up again, at ``stage``, because a person has asked for it."""

    stage: Stage
    reason: str


@dataclass(frozen=True)
class Forget(Step):
    """What was asked of the run cannot be done any more: it has moved on meanwhile."""


@dataclass(frozen=True)
class Nothing(Step):
    """The run has ended, and nothing is asked of it."""
