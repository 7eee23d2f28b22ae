"""The release on a managed online endpoint: one for each model, with a challenger deployed beside the champion."""

import logging
from contextlib import suppress
from hashlib import sha256
from typing import Any

from azure.core.exceptions import AzureError, HttpResponseError, ResourceExistsError, ResourceNotFoundError

from . import azure_clients, deployment_spec, lineage, live_record, verification
from .errors import TransientError
from .observation import DeploymentSeen
from .recipe import Recipe, stored_recipe
from .runs import Run, Stage
from .serving_environment import CHAT_PATH
from .settings import settings

log = logging.getLogger("function_app.release_managed")

SETTLED = ("Succeeded", "Failed", "Canceled")  # provisioning states in which nothing is under way
TOKEN_SCOPE = "https://ml.azure.com/.default"  # noqa: S105 - the name of an audience


def endpoint_name(run: Run) -> str:
    """The endpoint of the run's model."""
    return _endpoint(run.model)


def _endpoint(model: str) -> str:
    """The suffix makes the name unique in the region, where endpoint names live."""
    scope = f"{settings().subscription_id}/{settings().resource_group}/{settings().workspace}/{model}"
    return f"{model}-{sha256(scope.encode()).hexdigest()[:6]}"


def place_in_words(run: Run) -> str:
    """Where the run's model serves, or will, for the history."""
    return f"deployment {run.deployment} on endpoint {endpoint_name(run)}"


def register(run: Run) -> tuple[str, str]:
    """Register the job's model output under the run's version, with where it came from; return name and version."""
    from azure.ai.ml.entities import Model

    models = azure_clients.ml_client().models
    name, version = run.model, run.model_version
    try:
        models.get(name, version)
        return name, version
    except ResourceNotFoundError:
        pass
    try:
        models.create_or_update(
            Model(
                name=name,
                version=version,
                type="mlflow_model",
                path=run.numbers.get("model_uri") or f"azureml://jobs/{run.job}/outputs/model",
                description=f"{run.recipe.get('base_model')} fine-tuned on {run.dataset.blob}",
                tags=lineage.of_model(run),
            )
        )
    except HttpResponseError as error:
        # Another invocation has registered it in between: what it says is the same.
        if error.status_code not in (400, 409):
            raise
        try:
            models.get(name, version)
        except ResourceNotFoundError:
            raise error from None
    return name, version


def observe_endpoint(run: Run) -> tuple[str, dict[str, int]]:
    """The endpoint's provisioning state ("" when there is none) and its traffic.

    To a run whose turn to take over has come and that is addressed by name all its requests count as its traffic.
    """
    try:
        endpoint = azure_clients.ml_client().online_endpoints.get(endpoint_name(run))
    except ResourceNotFoundError:
        return "", {}
    traffic = {name: int(share) for name, share in (endpoint.traffic or {}).items()}
    if run.stage == Stage.SHIFTING and _is_addressed_by_name(run, traffic):
        traffic = {run.deployment: 100}
    return azure_clients.plain(endpoint.provisioning_state), traffic


def _is_addressed_by_name(run: Run, traffic: dict[str, int]) -> bool:
    """Whether the chat route goes to the run's deployment whatever the traffic, which stays where it is meanwhile.

    So it is with the scoring payload while another deployment has traffic: whoever still has the old live record sends
    OpenAI's requests, to a path that this deployment does not have.
    """
    return bool(_wire(run)) and any(share for name, share in traffic.items() if name != run.deployment)


def _wire(run: Run) -> str:
    return deployment_spec.wire(stored_recipe(run.recipe))


def observe_deployment(run: Run) -> DeploymentSeen | None:
    """The run's deployment, with the end of its log when it failed."""
    ml = azure_clients.ml_client()
    try:
        deployment = ml.online_deployments.get(run.deployment, endpoint_name(run))
    except ResourceNotFoundError:
        return None
    state = azure_clients.plain(deployment.provisioning_state)
    error = ""
    if state == "Failed":
        try:
            error = ml.online_deployments.get_logs(name=run.deployment, endpoint_name=endpoint_name(run), lines=12)
        except AzureError:  # no container, no log: an image that could not be built, say
            error = "it wrote no log; see the deployment in Azure ML"
    return DeploymentSeen(state, error.strip())


def create_endpoint(run: Run) -> None:
    """Start creating the model's endpoint; nobody waits for it here."""
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    endpoints = azure_clients.ml_client().online_endpoints
    try:
        # One that has failed may still serve: a request without its traffic would take that away.
        endpoint = endpoints.get(endpoint_name(run))
    except ResourceNotFoundError:
        endpoint = ManagedOnlineEndpoint(
            name=endpoint_name(run),
            auth_mode="aad_token",
            identity=azure_clients.user_assigned(settings().endpoint_identity_id),
            tags={"model": run.model},
        )
    endpoints.begin_create_or_update(endpoint)


def create_deployment(run: Run, recipe: Recipe) -> None:
    """Start creating the challenger's deployment, which gets no traffic yet."""
    ml = azure_clients.ml_client()
    if run.place:  # a way back: what is still there and well is taken as it is
        with suppress(ResourceNotFoundError):
            there = ml.online_deployments.get(run.deployment, endpoint_name(run))
            if azure_clients.plain(there.provisioning_state) == "Succeeded":
                return
    ml.online_deployments.begin_create_or_update(deployment_spec.deployment(run, recipe, endpoint_name(run)))


def _chat_url(run: Run) -> str:
    """Where the endpoint takes the run's chats. The scoring URI may end in /score or in another container's route."""
    uri = str(azure_clients.ml_client().online_endpoints.get(endpoint_name(run)).scoring_uri)
    uri = uri.removesuffix(CHAT_PATH).removesuffix(deployment_spec.SCORING_PATH).rstrip("/")
    return uri + deployment_spec.path(stored_recipe(run.recipe))


def verify(run: Run) -> str:
    """As release.verify: only the new deployment is asked, by the header that names it."""
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy

    authorization = BearerTokenCredentialPolicy(azure_clients.credential(), TOKEN_SCOPE)
    headers = {"azureml-model-deployment": run.deployment}
    return verification.ask(run, verification.Asked(_chat_url(run), authorization, headers, _wire(run)))


def champion(run: Run) -> str:
    """The deployment that the live record names, when it is on this endpoint, well, and not the run's own.

    One that takes other requests than the run's cannot share the traffic with it, and does not count. Raises
    TransientError while it is being changed: Azure gives no traffic to it then, and it is not gone either.
    """
    name, state, wire = _champion(run)
    if state not in ("", "Deleting", *SETTLED):
        raise TransientError(f"the deployment that serves, {name}, is {state}")
    return name if state == "Succeeded" and not wire and not _wire(run) else ""


def _champion(run: Run) -> tuple[str, str, str]:
    """The champion's deployment, its provisioning state, and what it takes (wire); "" for all when it is not there."""
    live = live_record.read(run.model) or {}
    name = str(live.get("deployment") or "")
    if not name or name == run.deployment or live.get("endpoint") != endpoint_name(run):
        return "", "", ""
    try:
        deployment = azure_clients.ml_client().online_deployments.get(name, endpoint_name(run))
    except ResourceNotFoundError:
        return "", "", ""
    return name, azure_clients.plain(deployment.provisioning_state), str(live.get("wire") or "")


def shift_traffic(run: Run, share: int) -> None:
    """As release.shift_traffic. One PUT: requests in flight end where they are."""
    ml = azure_clients.ml_client()
    endpoint = ml.online_endpoints.get(endpoint_name(run))
    if _is_addressed_by_name(run, endpoint.traffic or {}):
        return
    traffic = {run.deployment: share}
    if share < 100:
        keeps = champion(run)
        if not keeps:
            raise TransientError("the deployment that serves is gone; looking again")
        traffic[keeps] = 100 - share
    endpoint.traffic = traffic
    ml.online_endpoints.begin_create_or_update(endpoint)


def deployments(model: str) -> dict[str, str]:
    """The deployments of a model's endpoint, with the run ids in their tags."""
    try:
        found = list(azure_clients.ml_client().online_deployments.list(_endpoint(model)))
    except ResourceNotFoundError:  # there is no endpoint
        return {}
    return {str(each.name): (each.tags or {}).get("run_id", "") for each in found}


def delete_deployment(model: str, deployment: str) -> None:
    """Start deleting a deployment that another has replaced.

    One that has kept the traffic, as the one that serves is addressed by name, gives it to that one first; raises
    TransientError then.
    """
    ml = azure_clients.ml_client()
    endpoint = ml.online_endpoints.get(_endpoint(model))
    if (endpoint.traffic or {}).get(deployment):
        serves = str((live_record.read(model) or {}).get("deployment") or "")
        endpoint.traffic = {serves: 100} if serves not in ("", deployment) else {}
        ml.online_endpoints.begin_create_or_update(endpoint)
        raise TransientError(f"the traffic of {endpoint.name} is being given to {serves or 'nobody'}")
    if azure_clients.plain(endpoint.provisioning_state) not in SETTLED:
        raise TransientError(f"{endpoint.name} is being updated, and may still send {deployment} requests")
    ml.online_deployments.begin_delete(deployment, _endpoint(model))


def take_down(model: str, deployment: str) -> None:
    """Start deleting a deployment although it has the traffic: its model serves elsewhere now.

    With the last deployment goes the endpoint. Raises TransientError while the traffic is being taken away.
    """
    ml = azure_clients.ml_client()
    if list(deployments(model)) == [deployment]:
        ml.online_endpoints.begin_delete(_endpoint(model))
        return
    endpoint = ml.online_endpoints.get(_endpoint(model))
    if (endpoint.traffic or {}).get(deployment):
        endpoint.traffic = {}
        ml.online_endpoints.begin_create_or_update(endpoint)
        raise TransientError(f"the traffic of {endpoint.name} is being taken away")
    delete_deployment(model, deployment)


def live_fields(run: Run) -> dict[str, Any]:
    """What the live record says of the place."""
    place = {"endpoint": endpoint_name(run), "deployment": run.deployment, "scoring_uri": _chat_url(run)}
    return {**place, "wire": _wire(run)} if _wire(run) else place


def discarded(run: Run) -> bool:
    """Give the challenger's traffic back to the champion, then delete its deployment; True once it is gone."""
    ml = azure_clients.ml_client()
    try:
        endpoint = ml.online_endpoints.get(endpoint_name(run))
    except ResourceNotFoundError:
        return True
    if azure_clients.plain(endpoint.provisioning_state) not in SETTLED:
        return False  # until the update is done the deployment may get requests, whatever the traffic says
    if (endpoint.traffic or {}).get(run.deployment):
        keeps, _, _ = _champion(run)  # also one that is being changed: without traffic it would answer nobody
        endpoint.traffic = {keeps: 100} if keeps else {}
        ml.online_endpoints.begin_create_or_update(endpoint)
        log.info("discard run_id=%s traffic_back_to=%s", run.id, keeps or "nobody")
        return False
    if observe_deployment(run) is None:
        return True
    try:
        ml.online_deployments.begin_delete(run.deployment, endpoint_name(run))
    except ResourceExistsError:  # 409: it is still being created, and can be deleted when that is over
        log.info("discard run_id=%s busy", run.id)
    return False


def endpoint_deleted(model: str) -> bool:
    """Delete the model's endpoint with all its deployments; True once it is gone."""
    ml = azure_clients.ml_client()
    try:
        endpoint = ml.online_endpoints.get(_endpoint(model))
    except ResourceNotFoundError:
        return True
    if azure_clients.plain(endpoint.provisioning_state) != "Deleting":
        ml.online_endpoints.begin_delete(_endpoint(model))
    return False
