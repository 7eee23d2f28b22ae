"""The model that a training starts from, and the one that serves now, against which it is measured."""

import logging
import re
from dataclasses import dataclass
from typing import Any

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from .. import azure_clients, live_record
from ..errors import UserError
from ..recipe import Recipe
from ..recipe.defaults import LIVE
from ..runs import Run

log = logging.getLogger("function_app.engines")

REGISTRY_MODEL = re.compile(
    r"azureml://registries/(?P<registry>[^/]+)/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+)|/labels/latest)?/?"
)
REGISTRY_FORM = "azureml://registries/<registry>/models/<name>/versions/<version>, or …/labels/latest"


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    ``base_model`` is the name that the job goes by (its defaults, its licence); ``base`` the asset whose files it gets,
    "" when it fetches them by the name; ``champion`` the asset of the model that serves now, "" when there is none.
    """

    base_model: str
    base: str = ""
    champion: str = ""


def resolve(run: Run, recipe: Recipe) -> Start:
    """What the recipe's base_model stands for at this moment. Raises UserError when there is no such model."""
    record = live_record.read(run.model)
    champion = _asset(record) if record else ""
    name = recipe.base_model
    if name == LIVE:
        return _continued(run, record, champion)
    base = registry_model(name).id if name.startswith("azureml:") else ""
    return Start(name, str(base), champion)


def _continued(run: Run, record: dict[str, Any] | None, champion: str) -> Start:
    mend = "name the base model itself in base_model"
    if record is None:
        raise UserError(f"base_model is live, but no model serves as {run.model} yet: {mend} for the first training.")
    if not champion:
        raise UserError(
            f"base_model is live, but the files of {run.model}, version {record.get('model_version')}, cannot be had:"
            f" the model was deleted, or trained by the service, which keeps them; {mend}."
        )
    original = str(record.get("base_model") or "")
    if original in ("", LIVE):
        raise UserError(f"base_model is live, but the live record of {run.model} does not say from which base: {mend}.")
    return Start(original, champion, champion)


def _asset(record: dict[str, Any]) -> str:
    """The registered model that serves, as a job's input; "" when a job cannot read it."""
    if record.get("auth") == "key":  # it serves without a machine of ours, and its files stay with the service
        return ""
    name, version = str(record["model"]), str(record.get("model_version") or "")
    try:
        azure_clients.ml_client().models.get(name, version)
    except ResourceNotFoundError:
        log.warning("champion model=%s version=%s gone", name, version)
        return ""
    return f"azureml:{name}:{version}"


def registry_model(id: str) -> Any:
    """The model of a registry, as the SDK has it; its ``id`` names a version. Raises UserError."""
    match = REGISTRY_MODEL.fullmatch(id)
    if match is None:
        raise UserError(f"base_model {id} is no id of a registry's model; it has the form {REGISTRY_FORM}.")
    from azure.ai.ml.exceptions import ValidationException

    registry, name, version = match["registry"], match["name"], match["version"]
    which = {"version": version} if version else {"label": "latest"}
    there = f"the registry {registry}"
    try:
        client = azure_clients.registry_client(registry)
        there = f"{name} in version {version}" if version else name
        return client.models.get(name, **which)
    except ValidationException:  # what the SDK makes of a model without versions
        missing = there
    except HttpResponseError as error:
        if error.status_code != 404:
            raise
        missing = there
    where = "" if missing.startswith("the registry") else f" in the registry {registry}"
    raise UserError(f"base_model {id}: there is no {missing.removeprefix('the ')}{where}; see the model catalogue.")
