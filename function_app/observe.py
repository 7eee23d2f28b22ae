"""Looks at what a run's stage depends on, and at nothing else. Used by steps.py alone."""

import time

from . import engines, idle, release, turn
from .observation import JobSeen, Observation, Twin
from .recipe import stored_recipe
from .runs import Run, RunStore, Stage, Summary
from .settings import settings

# Where a run must see the others as they are now: its twins, and newer data that makes its job a waste.
LISTED_ANEW = (Stage.VALIDATED, Stage.TRAINING)
MOMENT = 10.0  # seconds for which a listing is good enough in the stages after them
# Stages of a run that counts: its data is good, and it has not ended badly.
COUNTING = frozenset(set(Stage) - {Stage.RECEIVED, Stage.REJECTED, Stage.FAILED, Stage.CANCELLED, Stage.SUPERSEDED})


class Others:
    """The other runs of a run's model, as one invocation has listed them.

    After the training its steps follow each other at once, and a listing grows with every run that the model ever had.
    One that comes meanwhile is seen at the next look, or waits for the turn.
    """

    def __init__(self) -> None:
        self._listed: list[Summary] = []
        self._at = float("-inf")

    def of(self, runs: RunStore, run: Run) -> list[Summary]:
        """Those that could overtake the run, or be its twins.

        A run that has a share of the traffic is not overtaken any more, and a rollback never is: they need no listing.
        """
        if run.share or run.release_of:
            return []
        if run.stage in LISTED_ANEW or time.monotonic() - self._at > MOMENT:
            since = time.monotonic()
            self._listed = [
                other for other in runs.summaries(f"{run.model}-")
                if other.model == run.model and other.id != run.id and other.stage in COUNTING and not other.rollback
            ]  # fmt: skip
            self._at = since
        return self._listed


def observe(runs: RunStore, run: Run, known: Others | None = None) -> Observation:
    """What is there now; ``known``: what the invocation has listed before. Raises what Azure raises."""
    if run.ended:
        return Observation(job=_job(run) if _is_to_be_resumed(run) else None, used_again=idle.used_since_asked(run))
    if run.stage == Stage.RECEIVED:
        return Observation()
    others = (known or Others()).of(runs, run)
    overtaken_by = _overtaken_by(run, others)
    match run.stage:
        case Stage.VALIDATED:
            return Observation(overtaken_by, _twins(run, others))
        case Stage.TRAINED:
            return Observation(overtaken_by, safety=bool(settings().content_safety_endpoint))
        case Stage.APPROVED:
            return Observation(overtaken_by)
        case Stage.VERIFYING:
            return Observation(overtaken_by, deployment=release.observe_deployment(run))
        case Stage.TRAINING:
            return Observation(overtaken_by, job=_job(run))
        case Stage.REGISTERED:
            if releasing := turn.holder(runs, run):
                return Observation(overtaken_by, releasing=releasing)
            state, traffic = release.observe_endpoint(run)
            return Observation(overtaken_by, endpoint_state=state, traffic=traffic)
        case _:
            state, traffic = release.observe_endpoint(run)
            return Observation(
                overtaken_by,
                endpoint_state=state,
                traffic=traffic,
                deployment=release.observe_deployment(run) if state else None,
                champion=release.champion(run) if state and run.stage == Stage.SHIFTING else "",
            )


def _is_to_be_resumed(run: Run) -> bool:
    """A person wants it taken up again, and it stopped while it had a job."""
    if not run.asked or run.asked.action != "retry" or run.cleanup:
        return False
    return len(run.history) > 1 and run.history[-2].stage == Stage.TRAINING


def _job(run: Run) -> JobSeen | None:
    return engines.engine(stored_recipe(run.recipe)).observe(run)


def _overtaken_by(run: Run, others: list[Summary]) -> str:
    """The newest run whose data came later. The same file overtakes nothing."""
    newer = [
        (other.uploaded_at, other.id)
        for other in others
        if other.uploaded_at > run.dataset.uploaded_at and other.fingerprint != run.fingerprint
    ]
    return max(newer)[1] if newer else ""


def _twins(run: Run, others: list[Summary]) -> tuple[Twin, ...]:
    """The runs of the same records and recipe, but for those whose model no longer serves, or will not stay.

    An earlier twin does not count where other data was dropped between the two: who drops a file, another one and the
    first again wants the first.
    """
    mine = (run.dataset.uploaded_at, run.id)
    different = [(other.uploaded_at, other.id) for other in others if other.fingerprint != run.fingerprint]
    return tuple(
        Twin(other.id, other.stage, (other.uploaded_at, other.id) < mine)
        for other in others
        if other.fingerprint == run.fingerprint
        and other.stage != Stage.RETIRED
        and not any((other.uploaded_at, other.id) < between < mine for between in different)
    )
