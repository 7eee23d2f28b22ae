"""From a trained model to one that serves: register, deploy beside the champion, verify, shift traffic, clean up."""

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError

from . import azure_clients
from .errors import StepError, TransientError
from .lifecycle import DeploymentSeen
from .recipe import Recipe
from .runs import Run
from .settings import settings

log = logging.getLogger("function_app.release")

SERVING = Path(__file__).resolve().parents[1] / "serving"
CHAT_PATH = "/v1/chat/completions"
SERVING_PORT = 5001  # PORT in serving/Dockerfile
TOKEN_SCOPE = "https://ml.azure.com/.default"  # noqa: S105 - the name of an audience
REQUEST_TIMEOUT_MS = 180_000  # Azure's maximum; the default of 5 s cuts long answers off
QUEUE_WAIT_MS = 60_000
VERIFY_TIMEOUT = 60  # seconds for one question
VERIFY_QUESTIONS = 3
# What an endpoint may answer in the first moments of a deployment, or under load (424: the container refused).
NOT_YET = frozenset({404, 408, 424, 429})
# Seconds and counts. The image and the model take minutes to start in Azure: readiness is given up after 30, and
# liveness, which restarts the container, is asked from the tenth on.
READINESS = {"initial_delay": 10, "period": 10, "timeout": 2, "success_threshold": 1, "failure_threshold": 180}
LIVENESS = {"initial_delay": 600, "period": 10, "timeout": 5, "success_threshold": 1, "failure_threshold": 6}


def endpoint_name(model: str) -> str:
    """The model's endpoint. The suffix makes it unique in the region, where endpoint names live."""
    scope = f"{settings().subscription_id}/{settings().resource_group}/{settings().workspace}/{model}"
    return f"{model}-{sha256(scope.encode()).hexdigest()[:6]}"


def register(run: Run) -> None:
    """Register the job's model output under the run's version, with where it came from."""
    from azure.ai.ml.entities import Model

    models = azure_clients.ml_client().models
    try:
        models.get(run.model, run.model_version)
        return
    except ResourceNotFoundError:
        pass
    models.create_or_update(
        Model(
            name=run.model,
            version=run.model_version,
            type="mlflow_model",
            path=f"azureml://jobs/{run.id}/outputs/model",
            description=f"{run.recipe.get('base_model')} fine-tuned on {run.dataset.blob}",
            tags={"run_id": run.id, "dataset": run.dataset.blob, "dataset_etag": run.dataset.etag},
        )
    )


def observe_endpoint(run: Run) -> tuple[str, dict[str, int]]:
    """The endpoint's provisioning state ("" when there is none) and its traffic."""
    try:
        endpoint = azure_clients.ml_client().online_endpoints.get(endpoint_name(run.model))
    except ResourceNotFoundError:
        return "", {}
    return azure_clients.plain(endpoint.provisioning_state), {k: int(v) for k, v in (endpoint.traffic or {}).items()}


def observe_deployment(run: Run) -> DeploymentSeen | None:
    """The run's deployment, with the end of its log when it failed."""
    ml = azure_clients.ml_client()
    try:
        deployment = ml.online_deployments.get(run.deployment, endpoint_name(run.model))
    except ResourceNotFoundError:
        return None
    state = azure_clients.plain(deployment.provisioning_state)
    error = ""
    if state == "Failed":
        try:
            error = ml.online_deployments.get_logs(
                name=run.deployment, endpoint_name=endpoint_name(run.model), lines=12
            )
        except AzureError:  # no container, no log: an image that could not be built, say
            error = "it wrote no log; see the deployment in Azure ML"
    return DeploymentSeen(state, error.strip())


def create_endpoint(run: Run) -> None:
    """Start creating the model's endpoint; nobody waits for it here."""
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    azure_clients.ml_client().online_endpoints.begin_create_or_update(
        ManagedOnlineEndpoint(
            name=endpoint_name(run.model),
            auth_mode="aad_token",
            identity=azure_clients.user_assigned(settings().endpoint_identity_id),
            tags={"model": run.model},
        )
    )


def create_deployment(run: Run, recipe: Recipe) -> None:
    """Start creating the challenger's deployment, which gets no traffic yet."""
    from azure.ai.ml.entities import ManagedOnlineDeployment, OnlineRequestSettings, ProbeSettings

    azure_clients.ml_client().online_deployments.begin_create_or_update(
        ManagedOnlineDeployment(
            name=run.deployment,
            endpoint_name=endpoint_name(run.model),
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


def chat_url(run: Run) -> str:
    """Where the endpoint takes OpenAI chat requests. The scoring URI may end in /score or in the container's route."""
    uri = str(azure_clients.ml_client().online_endpoints.get(endpoint_name(run.model)).scoring_uri)
    return uri.removesuffix(CHAT_PATH).removesuffix("/score").rstrip("/") + CHAT_PATH


def verify(run: Run) -> str:
    """Ask the new deployment alone a few of the evaluation's prompts; return a sentence for the history.

    Raises StepError when it does not answer each with some text, and TransientError when it is not ready or too busy.
    """
    from azure.core import PipelineClient
    from azure.core.exceptions import HttpResponseError
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy
    from azure.core.rest import HttpRequest, HttpResponse

    url = chat_url(run)
    policies = [RetryPolicy(), BearerTokenCredentialPolicy(azure_clients.credential(), TOKEN_SCOPE)]
    samples = run.numbers.get("samples") or [{"messages": [{"role": "user", "content": "Hello"}]}]
    with PipelineClient[HttpRequest, HttpResponse](url, policies=policies) as client:
        for index, sample in enumerate(samples[:VERIFY_QUESTIONS], 1):
            body = {"model": run.model, "messages": sample["messages"], "max_tokens": 64, "temperature": 0}
            request = HttpRequest("POST", url, json=body, headers={"azureml-model-deployment": run.deployment})
            response = client.send_request(request, read_timeout=VERIFY_TIMEOUT)
            if response.status_code in NOT_YET or response.status_code >= 500:
                raise TransientError(f"the new deployment answered {response.status_code} to test question {index}")
            try:
                response.raise_for_status()
                content = response.json()["choices"][0]["message"]["content"]
            except (HttpResponseError, ValueError, LookupError, TypeError) as error:
                raise StepError(
                    f"the new deployment did not answer test question {index}: status {response.status_code}"
                    f" ({type(error).__name__}); the model that served before still serves"
                ) from None
            if not str(content or "").strip():
                raise StepError(f"the new deployment gave an empty answer to test question {index}")
    asked = min(len(samples), VERIFY_QUESTIONS)
    return f"{asked} test question{'s' if asked != 1 else ''} answered by the new deployment"


def shift_traffic(run: Run) -> None:
    """Send everything to the run's deployment. One PUT: requests in flight end where they are."""
    ml = azure_clients.ml_client()
    endpoint = ml.online_endpoints.get(endpoint_name(run.model))
    endpoint.traffic = {run.deployment: 100}
    ml.online_endpoints.begin_create_or_update(endpoint)


def other_deployments(run: Run) -> dict[str, str]:
    """The other deployments of the run's endpoint, with the run ids in their tags."""
    found = azure_clients.ml_client().online_deployments.list(endpoint_name(run.model))
    return {d.name: (d.tags or {}).get("run_id", "") for d in found if d.name != run.deployment}


def delete_deployment(run: Run, deployment: str) -> None:
    """Start deleting a deployment of the run's endpoint."""
    azure_clients.ml_client().online_deployments.begin_delete(deployment, endpoint_name(run.model))


def write_live_record(run: Run) -> None:
    """Tell the chat route which model serves, and where (docs/interfaces.md)."""
    record: dict[str, Any] = {
        "model": run.model,
        "run_id": run.id,
        "endpoint": endpoint_name(run.model),
        "deployment": run.deployment,
        "scoring_uri": chat_url(run),
        "model_version": run.model_version,
        "base_model": run.recipe.get("base_model"),
        "context_length": run.numbers.get("context_length"),
        "since": run.stage_since,
    }
    container = azure_clients.container(settings().runs_container)
    container.upload_blob(f"live/{run.model}.json", msgspec.json.encode(record), overwrite=True)


def discarded(run: Run) -> bool:
    """Delete a challenger's deployment that will not serve; True once it is gone, or has traffic and so stays."""
    state, traffic = observe_endpoint(run)
    if not state or traffic.get(run.deployment) or observe_deployment(run) is None:
        return True
    try:
        delete_deployment(run, run.deployment)
    except ResourceExistsError:  # 409: it is still being created, and can be deleted when that is over
        log.info("discard run_id=%s busy", run.id)
    return False
