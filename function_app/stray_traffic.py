"""Puts an endpoint's traffic right after an invocation that came late: a request that was held up for minutes, between
a look and the change that followed from it, may have undone what the model's release has done meanwhile."""

import logging

from azure.core.exceptions import ResourceNotFoundError

from . import azure_clients, live_record
from .runs import Run, RunStore
from .settle import RELEASING

log = logging.getLogger("function_app.stray_traffic")


def mend(runs: RunStore, run: Run) -> None:
    """Give all traffic to the deployment of the live record again; a release that is under way sees to its own.

    Only called when an invocation of ``run`` was overtaken or has died; raises what Azure raises, and is then repeated.
    """
    if any(other.model == run.model and other.stage in RELEASING for other in runs.summaries(f"{run.model}-")):
        return
    live = live_record.read(run.model) or {}
    name, serves = str(live.get("endpoint") or ""), str(live.get("deployment") or "")
    if not serves or live.get("wire"):  # serverless, or addressed by name: its traffic says nothing
        return
    ml = azure_clients.ml_client()
    try:
        endpoint = ml.online_endpoints.get(name)
        deployment = ml.online_deployments.get(serves, name)
    except ResourceNotFoundError:  # retired meanwhile
        return
    shares = {each: share for each, share in (endpoint.traffic or {}).items() if share}
    if shares == {serves: 100} or azure_clients.plain(deployment.provisioning_state) != "Succeeded":
        return
    log.error("traffic model=%s was=%s given_back_to=%s after=%s", run.model, shares, serves, run.id)
    endpoint.traffic = {serves: 100}
    ml.online_endpoints.begin_create_or_update(endpoint)
