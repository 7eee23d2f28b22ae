"""The release of what fine-tuning as a service has made: a serverless endpoint for each run's model.

A serverless endpoint has one model and cannot change it, so there is no deployment beside the champion's and no traffic
to shift: the new model gets an endpoint of its own, and is live once the live record names it.
"""

import logging
from typing import Any

from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

from . import azure_clients, lineage, verification
from .errors import StepError
from .observation import DeploymentSeen
from .recipe import Recipe
from .runs import Run, Stage
from .settings import settings

log = logging.getLogger("function_app.release_serverless")

CHAT_PATH = "/v1/chat/completions"


def endpoint_name(run: Run) -> str:
    """One endpoint for each run. Of the 52 letters, digits and hyphens that Azure allows it has at most 38."""
    return run.id


def place_in_words(run: Run) -> str:
    """Where the run's model serves, or will, for the history."""
    return f"serverless endpoint {endpoint_name(run)}"


def register(run: Run) -> tuple[str, str]:
    """The service has registered the model; add where it came from, and return its name and version."""
    models = azure_clients.ml_client().models
    name, version = _model(run)
    try:
        model = models.get(name, version)
    except ResourceNotFoundError:
        raise StepError(f"the model {name}, version {version}, that the service registered is gone") from None
    model.tags = {**(model.tags or {}), **lineage.of_model(run)}
    try:
        models.create_or_update(model)
    except HttpResponseError as error:
        if error.status_code != 400:
            raise
        # The model is the service's own. Its job has the same tags, so a refusal is not worth a trained model.
        log.warning("register run_id=%s tags=refused", run.id)
    return name, version


def observe_endpoint(run: Run) -> tuple[str, dict[str, int]]:
    """The endpoint's provisioning state ("" when there is none), and all its requests as the run's traffic.

    Before the run's turn to take over it has none: a newer run may overtake it.
    """
    state = _state(run)
    return state, {run.deployment: 100} if state and run.stage == Stage.SHIFTING else {}


def observe_deployment(run: Run) -> DeploymentSeen | None:
    """The endpoint, which is its own deployment."""
    state = _state(run)
    return DeploymentSeen(state, "see the endpoint in Azure ML" if state == "Failed" else "") if state else None


def create_endpoint(run: Run) -> None:
    """Start creating the endpoint; nobody waits for it here."""
    from azure.ai.ml.entities import ServerlessEndpoint

    ml = azure_clients.ml_client()
    workspace = ml.workspaces.get(settings().workspace)
    name, version = _model(run)
    # https://learn.microsoft.com/azure/ai-foundry/how-to/fine-tune-serverless writes a tuned model's id so.
    model_id = f"azureml://locations/{workspace.location}/workspaces/{workspace._workspace_id}/models/{name}/versions/{version}"
    ml.serverless_endpoints.begin_create_or_update(
        ServerlessEndpoint(name=endpoint_name(run), model_id=model_id, tags={"run_id": run.id, "model": run.model})
    )


def create_deployment(run: Run, recipe: Recipe) -> None:
    """Nothing to create: the endpoint has its model."""


def champion(run: Run) -> str:  # noqa: ARG001
    """None: the model that serves has an endpoint of its own."""
    return ""


def shift_traffic(run: Run, share: int) -> None:
    """Nothing to shift: all requests to the endpoint go to its model."""


def verify(run: Run) -> str:
    """As release.verify. The key is asked for and used here, and kept nowhere."""
    from azure.core.credentials import AzureKeyCredential
    from azure.core.pipeline.policies import AzureKeyCredentialPolicy

    key = azure_clients.ml_client().serverless_endpoints.get_keys(endpoint_name(run)).primary_key
    authorization = AzureKeyCredentialPolicy[Any, Any](AzureKeyCredential(str(key)), "Authorization", prefix="Bearer")
    return verification.ask(run, verification.Asked(_chat_url(run), authorization, {}))


def live_fields(run: Run) -> dict[str, Any]:
    """What the live record says of the place."""
    return {
        "endpoint": endpoint_name(run),
        "deployment": "",
        "scoring_uri": _chat_url(run),
        "auth": "key",
        "model_version": _model(run)[1],
    }


def endpoints(model: str) -> dict[str, str]:
    """The serverless endpoints of a model, with the run ids in their tags; not those that are being deleted."""
    found = azure_clients.ml_client().serverless_endpoints.list()
    return {
        str(each.name): (each.tags or {}).get("run_id", "")
        for each in found
        if (each.tags or {}).get("model") == model and azure_clients.plain(each.provisioning_state) != "deleting"
    }


def delete(name: str) -> None:
    """Start deleting an endpoint."""
    azure_clients.ml_client().serverless_endpoints.begin_delete(name)


def discarded(run: Run) -> bool:
    """Delete a challenger's endpoint; True once it is gone."""
    state = _state(run)
    if not state:
        return True
    if state != "Deleting":
        try:
            delete(endpoint_name(run))
        except ResourceExistsError:  # 409: it is still being created, and can be deleted when that is over
            log.info("discard run_id=%s busy", run.id)
    return False


def _model(run: Run) -> tuple[str, str]:
    """Name and version of the model that the service has registered."""
    _, name, version = str(run.numbers["model_uri"]).split(":")
    return name, version


def _state(run: Run) -> str:
    """Azure's word for it; the SDK writes ``succeeded``."""
    try:
        endpoint = azure_clients.ml_client().serverless_endpoints.get(endpoint_name(run))
    except ResourceNotFoundError:
        return ""
    return azure_clients.plain(endpoint.provisioning_state).capitalize()


def _chat_url(run: Run) -> str:
    """Where the endpoint takes OpenAI chat requests."""
    uri = str(azure_clients.ml_client().serverless_endpoints.get(endpoint_name(run)).scoring_uri)
    return uri.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + CHAT_PATH
