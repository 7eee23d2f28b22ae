"""What must hold when a schedule is over: every version at its right end, and nothing left that nobody needs."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

import msgspec

from function_app import live_record, turn
from function_app.advance import store
from function_app.runs import ENDS, Run, Stage

from . import people
from .harness import Play
from .schedule import KINDS, Drop
from .world import FINAL

ORDER = list(Stage)
TAKEN_UP = (Stage.FAILED, Stage.CANCELLED)


def violations(play: Play) -> list[str]:
    """Every invariant that does not hold, in words."""
    runs = {run.id: run for run in people.runs_of(play.model)}
    checks = (_ends, _history, _releases, _jobs, _deployments, _endpoint, _live, _left)
    return [found for check in checks for found in check(play, runs)]


def _ends(play: Play, runs: dict[str, Run]) -> Iterator[str]:
    """Every dataset version, and every rollback, has come to the end that its story leads to."""
    for drop in play.schedule.drops:
        id = play.runs[drop.number]
        run = runs.get(id)
        if run is None:
            if drop.number not in play.overwritten:
                yield f"drop {drop.number} ({drop.kind}) has no run"
            continue
        allowed = _allowed(play, runs, drop)
        if run.stage not in allowed:
            why = run.history[-1].reason
            yield f"drop {drop.number} ({drop.kind}) ended {run.stage} ({why!r}), not {sorted(allowed)}"
    for id in play.rollbacks:
        if runs[id].stage not in (Stage.LIVE, Stage.RETIRED):
            yield f"the rollback {id} ended {runs[id].stage}: {runs[id].history[-1].reason!r}"


def _allowed(play: Play, runs: dict[str, Run], drop: Drop) -> set[str]:
    """The ends that the run of a drop may have."""
    id = play.runs[drop.number]
    asked = play.wanted.get(id, [])
    if asked and asked[-1] == "cancel":
        return {"cancelled"}
    allowed = _by_itself(play, drop, asked)
    if "live" in allowed and _replaced(play, runs, runs[id]):
        allowed.add("retired")
        if "live" in allowed and len(allowed) == 2:
            allowed.discard("live") if any(other.stage == "live" for other in runs.values()) else None
    if "retire" in asked:
        allowed.add("retired")
    if drop.number in play.overwritten or any(_counted(other) and _newer(other, runs[id]) for other in runs.values()):
        allowed.add("superseded")
    twins = [other for other in runs.values() if other.id != id and other.fingerprint == runs[id].fingerprint]
    if runs[id].fingerprint and any(_counted(other) for other in twins):
        allowed.add("superseded")
    return allowed


def _by_itself(play: Play, drop: Drop, asked: list[str]) -> set[str]:
    kind = drop.kind if drop.twin_of < 0 else play.schedule.drops[drop.twin_of].kind
    if drop.manual and "reject" in asked:
        return {"rejected"}
    if drop.manual and "approve" in asked:
        return {"live"}
    return set(KINDS[kind][1].split(" or "))


def _replaced(play: Play, runs: dict[str, Run], run: Run) -> bool:
    """Whether another model has served after it."""
    return any(
        event.stage == Stage.LIVE and event.at > run.stage_since - timedelta(seconds=4 * play.schedule.skew + 1)
        for other in runs.values()
        if other.id != run.id
        for event in other.history
    )


def _counted(run: Run) -> bool:
    """Whether it ever had good data: only then it supersedes."""
    return any(event.stage == Stage.VALIDATED for event in run.history)


def _newer(other: Run, run: Run) -> bool:
    return not other.release_of and other.dataset.uploaded_at > run.dataset.uploaded_at


def _history(play: Play, runs: dict[str, Run]) -> Iterator[str]:
    """Stages go forwards but for a Resume, times do but for the clocks' error, and there is one end."""
    tolerance = timedelta(seconds=2 * play.schedule.skew + 1)
    for run in runs.values():
        if run.history[-1].stage != run.stage:
            yield f"{run.id} is {run.stage}, its history says {run.history[-1].stage}"
        for before, after in pairwise(run.history):
            if after.at < before.at - tolerance:
                yield f"{run.id}: {after.stage} at {after.at}, after {before.stage} at {before.at}"
            forwards = ORDER.index(after.stage) > ORDER.index(before.stage) or before.stage == after.stage == "shifting"
            resumed = before.stage in TAKEN_UP and after.stage not in ENDS
            retired = before.stage == Stage.LIVE and after.stage == Stage.RETIRED
            if before.stage in ENDS and not (resumed or retired):
                yield f"{run.id}: {after.stage} after the end {before.stage}"
            if before.stage not in ENDS and not forwards:
                yield f"{run.id}: {after.stage} after {before.stage}"


def _releases(play: Play, runs: dict[str, Run]) -> Iterator[str]:
    """One release at a time: from the deployment to the end, no two runs overlap but for the clocks' error."""
    periods = []
    for run in runs.values():
        began = None
        for event in run.history:
            if event.stage == Stage.DEPLOYING:
                began = event.at
            elif event.stage in ENDS and began:
                periods.append((began, event.at, run.id))
                began = None
    tolerance = timedelta(seconds=2 * play.schedule.skew + 1)
    periods.sort()
    for (_, ended, first), (began, _, second) in pairwise(periods):
        if began < ended - tolerance:
            yield f"{second} was released from {began} on, {first} until {ended}"


def _jobs(play: Play, runs: dict[str, Run]) -> Iterator[str]:
    """One job for a run that trained (one more for each time that it was begun anew), none that still runs."""
    jobs = play.world.jobs()
    for job in jobs:
        if job.run not in runs:
            yield f"the job {job.name} belongs to no run"
        if job.state not in FINAL:
            yield f"the job {job.name} of {job.run} is still {job.state}"
    for run in runs.values():
        own = [job.name for job in jobs if job.run == run.id]
        trained = sum(event.stage == Stage.TRAINING for event in run.history)
        if len(own) > 1 + run.generation or (trained and not own) or (run.release_of and own):
            yield f"{run.id} has the jobs {own}, and was begun {1 + run.generation} times"


def _deployments(play: Play, runs: dict[str, Run]) -> Iterator[str]:
    """One deployment was made for each release, under one name, and only the live one is left.

    An invocation that had stalled may send its request when the run has ended meanwhile and its deployment is gone:
    nothing can keep it from that. It is then deleted again, which the last check sees.
    """
    made: dict[str, int] = {}
    for path, answer in play.faults.made:
        before, found, name = path.partition("/deployments/")
        if found and f"/onlineEndpoints/{play.model}-" in before and answer["status"] == 201:
            made[name] = made.get(name, 0) + 1
    for run in runs.values():
        times = made.pop(run.deployment, 0) if not run.place else 0
        releases = sum(event.stage == Stage.REGISTERED for event in run.history)
        if times > releases + play.stalls:
            yield f"{run.id} was deployed {times} times in {releases} releases"
    if made:
        yield f"deployments of nobody were made: {sorted(made)}"
    live = [run.deployment for run in runs.values() if run.stage == Stage.LIVE]
    left = [there.name for there in play.world.deployments()]
    if left != live:
        yield f"the deployments {left} are left, live are {live}"


def _endpoint(play: Play, runs: dict[str, Run]) -> Iterator[str]:
    """All traffic goes to the live deployment, which is well; without one there is none."""
    live = [run for run in runs.values() if run.stage == Stage.LIVE]
    if len(live) > 1:
        yield f"live are {[run.id for run in live]}"
    endpoints = play.world.endpoints()
    if live and not endpoints:
        yield f"{live[0].id} is live, and there is no endpoint"
    for endpoint in endpoints:
        traffic = {name: share for name, share in (endpoint.properties.get("traffic") or {}).items() if share}
        wanted = {live[0].deployment: 100} if live else {}
        if traffic != wanted:
            yield f"the traffic is {traffic}, not {wanted}"
    unwell = [f"{there.name} {there.state}" for there in play.world.deployments() if there.state != "Succeeded"]
    if unwell:
        yield f"deployments are not well: {unwell}"
    for run in good_and_newer(runs, live):
        yield f"{live[0].id} serves, and {run.id}, which has served, has newer data"
    retired = any("retire" in asked for asked in play.wanted.values())
    good = [run for run in runs.values() if any(event.stage == Stage.LIVE for event in run.history)]
    if good and not live and not retired:
        yield "a model has served, and none does now"


def good_and_newer(runs: dict[str, Run], live: list[Run]) -> list[Run]:
    """The runs of newer data than what serves, that have served; none where somebody went back to the older."""
    if not live or live[0].release_of:
        return []
    served = [run for run in runs.values() if any(event.stage == Stage.LIVE for event in run.history)]
    return [run for run in served if _newer(run, live[0]) and run.fingerprint != live[0].fingerprint]


def _live(play: Play, runs: dict[str, Run]) -> Iterator[str]:
    """The live record is the live run's."""
    record = live_record.read(play.model) or {}
    live = next((run for run in runs.values() if run.stage == Stage.LIVE), None)
    told = (record.get("run_id", ""), record.get("deployment", ""), record.get("model_version", ""))
    wanted = (live.id, live.deployment, live.model_version) if live else ("", "", "")
    if told != wanted:
        yield f"the live record says {told}, live is {wanted}"


def _left(play: Play, runs: dict[str, Run]) -> Iterator[str]:
    """Nothing is unsettled, the turn is free, and each model version is a run's."""
    for run in runs.values():
        if not run.ended or run.unsettled:
            yield f"{run.id} is {run.stage}, cleanup={run.cleanup!r} outbox={run.outbox} asked={run.asked}"
    versions = sorted(there.name for there in play.world.versions())
    registered = {run.model_version for run in runs.values()}
    if len(set(versions)) < len(versions) or not set(versions) <= registered:
        yield f"the model has the versions {versions}, the runs {sorted(registered)}"
    held = msgspec.structs.replace(next(iter(runs.values())), id=f"{play.model}-nobody") if runs else None
    if held is not None and (holder := turn.holder(store(), held)):
        yield f"{holder} has the turn for ever"
