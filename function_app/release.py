"""From a trained model to one that serves: register, deploy beside the champion, verify, shift traffic, clean up.

Where a model serves depends on its run's engine: what the service has tuned on a serverless endpoint of its own
(release_serverless.py), all else on the model's managed endpoint, as one of its deployments (release_managed.py). The
engine may change from run to run, so what a new model replaces is looked for in both places.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any, Literal

from . import deployment_spec, live_record, release_managed, release_serverless
from .errors import StepError
from .observation import DeploymentSeen
from .recipe import Recipe, stored_recipe
from .runs import Run, utc_now

log = logging.getLogger("function_app.release")


@dataclass(frozen=True)
class Place:
    """Where a model serves: a deployment of its managed endpoint, or a serverless endpoint."""

    kind: Literal["managed", "serverless"]
    name: str


def register(run: Run) -> tuple[str, str]:
    """Have the trained model registered, with where it came from; return its name and version."""
    registered: tuple[str, str] = _by_engine(run).register(run)
    return registered


def endpoint_name(run: Run) -> str:
    """The endpoint that the run's model serves on."""
    return str(_by_engine(run).endpoint_name(run))


def place_in_words(run: Run) -> str:
    """Where the run's model serves, or will, for the history."""
    return str(_by_engine(run).place_in_words(run))


def observe_endpoint(run: Run) -> tuple[str, dict[str, int]]:
    """The endpoint's provisioning state ("" when there is none) and its traffic."""
    seen: tuple[str, dict[str, int]] = _by_engine(run).observe_endpoint(run)
    return seen


def observe_deployment(run: Run) -> DeploymentSeen | None:
    """The run's deployment, with the reason when it failed."""
    seen: DeploymentSeen | None = _by_engine(run).observe_deployment(run)
    return seen


def create_endpoint(run: Run) -> None:
    """Start creating the endpoint; nobody waits for it here."""
    _by_engine(run).create_endpoint(run)


def create_deployment(run: Run, recipe: Recipe) -> None:
    """Start creating the challenger's deployment, which gets no traffic yet."""
    _by_engine(run).create_deployment(run, recipe)


def check(run: Run, recipe: Recipe) -> None:
    """Look, before anything is trained, whether the model can be served as the recipe has it. Raises UserError."""
    if _by_engine(run) is release_managed:
        deployment_spec.check(run, recipe)


def verify(run: Run) -> str:
    """Ask the new model alone a few of the evaluation's prompts; return a sentence for the history.

    Raises StepError when it does not answer each with some text, soon enough and like in the evaluation, and
    TransientError when it is not ready or too busy.
    """
    return str(_by_engine(run).verify(run))


def champion(run: Run) -> str:
    """The deployment that serves beside the run's own, on the same endpoint; "" when there is none that is well."""
    return str(_by_engine(run).champion(run))


def shift_traffic(run: Run, share: int) -> None:
    """Send ``share`` percent of the requests to the run's model, the others to the champion.

    Raises TransientError when the champion that was to keep the others is gone.
    """
    _by_engine(run).shift_traffic(run, share)


def other_deployments(run: Run) -> dict[Place, str]:
    """Where other models of the run's name serve, or are on their way, with the ids of their runs."""
    others = {Place("managed", name): id for name, id in release_managed.deployments(run.model).items()}
    others |= {Place("serverless", name): id for name, id in release_serverless.endpoints(run.model).items()}
    # Both: on the way back a run serves from a deployment that an earlier one has made.
    return {place: id for place, id in others.items() if id != run.id and place.name != run.deployment}


def delete_deployment(run: Run, place: Place) -> None:
    """Start deleting what serves at ``place``, which the run's model replaces."""
    if place.kind == "serverless":
        release_serverless.delete(place.name)
    elif _by_engine(run) is release_managed:
        release_managed.delete_deployment(run.model, place.name)
    else:
        # The traffic of the model's managed endpoint still goes there: nothing of this run's takes it over.
        release_managed.take_down(run.model, place.name)


def write_live_record(run: Run, check: Callable[[], None] = lambda: None) -> None:
    """Tell the chat route which model serves, and where (docs/interfaces.md).

    ``check`` raises when the run has been moved on. It is called after the look at the record that is there and before
    this one is written, which fails when another was written meanwhile: so a late invocation never replaces the record
    of a later run by its own.
    """
    etag = live_record.etag(run.model)
    try:
        before = live_record.read(run.model) or {}
    except StepError as error:  # somebody has edited it; this one takes its place
        log.error("live_record run_id=%s error=%r", run.id, str(error))
        before = {}
    check()
    record: dict[str, Any] = {
        "model": run.model,
        "run_id": run.id,
        "model_version": run.model_version,
        # By the job: a recipe may say live, and the next run has to know where the chain began.
        "base_model": run.numbers.get("base_model") or run.recipe.get("base_model"),
        "context_length": run.numbers.get("context_length"),
        "since": run.stage_since,
        "idle_hours": live_record.idle_hours(run.recipe),
        "chat": live_record.chat_rules(run.recipe),
        **_by_engine(run).live_fields(run),
    }
    baked = utc_now() + timedelta(minutes=stored_recipe(run.recipe).release.bake_minutes)
    live_record.write(live_record.with_replaced(record, before, baked), etag)


def discarded(run: Run) -> bool:
    """Give the traffic back to the champion and delete a challenger's deployment that will not serve.

    True once it is gone, or serves and so stays; to be repeated until then.
    """
    try:
        live = live_record.read(run.model) or {}
    except StepError as error:  # somebody has changed it: what serves is not known, so nothing is deleted
        log.error("discard run_id=%s live_record=%r", run.id, str(error))
        return False
    # A rollback that has failed may have the name of the deployment that serves.
    serves = live.get("run_id") == run.id or live.get("deployment") == run.deployment
    return serves or bool(_by_engine(run).discarded(run))


def retired(run: Run) -> bool:
    """Take the model of a run out of service: the live record first, then its endpoints. The models stay registered.

    True once they are gone, or when another run serves under the name; to be repeated until then. Raises StepError when
    the live record cannot be read.
    """
    etag = live_record.etag(run.model)
    live = live_record.read(run.model)
    if live is not None:
        if live.get("run_id") != run.id:
            return True
        live_record.delete(run.model, etag)
    serverless = release_serverless.endpoints(run.model)
    for name in serverless:
        release_serverless.delete(name)
    return release_managed.endpoint_deleted(run.model) and not serverless


def _by_engine(run: Run) -> ModuleType:
    return release_serverless if run.recipe.get("engine") == "service" else release_managed
