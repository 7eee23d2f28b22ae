"""The release on a managed online endpoint: one for each model, with a challenger deployed beside the champion."""

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError

from . import azure_clients, live_record, verification
from .errors import TransientError
from .observation import DeploymentSeen
from .recipe import Recipe
from .runs import Run
from .settings import settings

log = logging.getLogger("function_app.release_managed")

SERVING = Path(__file__).resolve().parents[1] / "serving"
SETTLED = ("Succeeded", "Failed", "Canceled")  # provisioning states in which nothing is under way
CHAT_PATH = "/v1/chat/completions"
SERVING_PORT = 5001  # PORT in serving/Dockerfile
TOKEN_SCOPE = "https://ml.azure.com/.default"  # noqa: S105 - the name of an audience
REQUEST_TIMEOUT_MS = 180_000  # Azure's maximum; the default of 5 s cuts long answers off
QUEUE_WAIT_MS = 60_000
# Seconds and counts. The image and the model take minutes to start in Azure: readiness is given up after 30, and
# liveness, which restarts the container, is asked from the tenth on.
READINESS = {"initial_delay": 10, "period": 10, "timeout": 2, "success_threshold": 1, "failure_threshold": 180}
LIVENESS = {"initial_delay": 600, "period": 10, "timeout": 5, "success_threshold": 1, "failure_threshold": 6}


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
    try:
        models.get(run.model, run.model_version)
        return run.model, run.model_version
    except ResourceNotFoundError:
        pass
    models.create_or_update(
        Model(
            name=run.model,
            version=run.model_version,
            type="mlflow_model",
            path=run.numbers.get("model_uri") or f"azureml://jobs/{run.id}/outputs/model",
            description=f"{run.recipe.get('base_model')} fine-tuned on {run.dataset.blob}",
            tags={"run_id": run.id, "dataset": run.dataset.blob, "dataset_etag": run.dataset.etag},
        )
    )
    return run.model, run.model_version


def observe_endpoint(run: Run) -> tuple[str, dict[str, int]]:
    """The endpoint's provisioning state ("" when there is none) and its traffic."""
    try:
        endpoint = azure_clients.ml_client().online_endpoints.get(endpoint_name(run))
    except ResourceNotFoundError:
        return "", {}
    return azure_clients.plain(endpoint.provisioning_state), {k: int(v) for k, v in (endpoint.traffic or {}).items()}


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
    from azure.ai.ml.entities import ManagedOnlineDeployment, OnlineRequestSettings, ProbeSettings

    azure_clients.ml_client().online_deployments.begin_create_or_update(
        ManagedOnlineDeployment(
            name=run.deployment,
            endpoint_name=endpoint_name(run),
            model=f"azureml:{run.model}:{run.model_version}",
            environment=_ensure_environment(),
            instance_type=recipe.serving.instance_type or settings().serving_instance_type,
            instance_count=recipe.serving.instance_count,
            request_settings=OnlineRequestSettings(
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                max_queue_wait_ms=QUEUE_WAIT_MS,
                max_concurrent_requests_per_instance=recipe.serving.max_concurrent_requests,
            ),
            liveness_probe=ProbeSettings(**LIVENESS),
            readiness_probe=ProbeSettings(**READINESS),
            tags={"run_id": run.id, "model": run.model},
        )
    )


def _ensure_environment() -> str:
    """The serving environment, registered once for each state of ``serving/``; its image is built once."""
    from azure.ai.ml.entities import BuildContext, Environment

    ml = azure_clients.ml_client()
    files = {path.relative_to(SERVING).as_posix(): path.read_bytes() for path in _serving_files()}
    version = sha256(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()[:12]
    try:
        ml.environments.get("chat-serving", version)
    except ResourceNotFoundError:
        # In the workspace's own storage: that is what its image builds can read.
        container = azure_clients.datastore_container("workspaceblobstore")
        for name, content in files.items():
            container.upload_blob(f"chat-serving/{version}/{name}", content, overwrite=True)
        health = {"port": SERVING_PORT, "path": "/health"}
        ml.environments.create_or_update(
            Environment(
                name="chat-serving",
                version=version,
                build=BuildContext(path=f"{container.url}/chat-serving/{version}/"),
                inference_config={
                    "liveness_route": health,
                    "readiness_route": health,
                    "scoring_route": {"port": SERVING_PORT, "path": CHAT_PATH},
                },
            )
        )
    return f"azureml:chat-serving:{version}"


def _serving_files() -> list[Path]:
    return [path for path in SERVING.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def _chat_url(run: Run) -> str:
    """Where the endpoint takes OpenAI chat requests. The scoring URI may end in /score or in the container's route."""
    uri = str(azure_clients.ml_client().online_endpoints.get(endpoint_name(run)).scoring_uri)
    return uri.removesuffix(CHAT_PATH).removesuffix("/score").rstrip("/") + CHAT_PATH


def verify(run: Run) -> str:
    """As release.verify: only the new deployment is asked, by the header that names it."""
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy

    authorization = BearerTokenCredentialPolicy(azure_clients.credential(), TOKEN_SCOPE)
    return verification.ask(run, _chat_url(run), authorization, {"azureml-model-deployment": run.deployment})


def champion(run: Run) -> str:
    """The deployment that the live record names, when it is on this endpoint, well, and not the run's own."""
    name, state = _champion(run)
    return name if state == "Succeeded" else ""


def _champion(run: Run) -> tuple[str, str]:
    """The champion's deployment and its provisioning state, however it is; "" for both when it is not there."""
    live = live_record.read(run.model) or {}
    name = str(live.get("deployment") or "")
    if not name or name == run.deployment or live.get("endpoint") != endpoint_name(run):
        return "", ""
    try:
        deployment = azure_clients.ml_client().online_deployments.get(name, endpoint_name(run))
    except ResourceNotFoundError:
        return "", ""
    return name, azure_clients.plain(deployment.provisioning_state)


def shift_traffic(run: Run, share: int) -> None:
    """As release.shift_traffic. One PUT: requests in flight end where they are."""
    ml = azure_clients.ml_client()
    endpoint = ml.online_endpoints.get(endpoint_name(run))
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
    """Start deleting a deployment that has no traffic."""
    azure_clients.ml_client().online_deployments.begin_delete(deployment, _endpoint(model))


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
    return {"endpoint": endpoint_name(run), "deployment": run.deployment, "scoring_uri": _chat_url(run)}


def discarded(run: Run) -> bool:
    """Give the challenger's traffic back to the champion, then delete its deployment; True once it is gone."""
    state, traffic = observe_endpoint(run)
    if not state:
        return True
    if state not in SETTLED:  # the deployment may get requests until the update is done, whatever the traffic says
        return False
    if traffic.get(run.deployment):
        ml = azure_clients.ml_client()
        endpoint = ml.online_endpoints.get(endpoint_name(run))
        keeps, _ = _champion(run)  # also one that is being changed: without traffic it would answer nobody
        endpoint.traffic = {keeps: 100} if keeps else {}
        ml.online_endpoints.begin_create_or_update(endpoint)
        log.info("discard run_id=%s traffic_back_to=%s", run.id, keeps or "nobody")
        return False
    if observe_deployment(run) is None:
        return True
    try:
        delete_deployment(run.model, run.deployment)
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
