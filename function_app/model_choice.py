"""Which deployment a chat request means by its ``model``: a live model's name, alone or with ``@`` and what pins it."""

from dataclasses import dataclass

from .callers import Caller
from .live import LiveModel, live_models
from .openai_api import model_not_found


@dataclass(frozen=True)
class Choice:
    """A live model and, when the request pins one, the deployment's name."""

    live: LiveModel
    deployment: str = ""


async def choose(name: str, caller: Caller) -> Choice:
    """Return what ``name`` means now.

    Raises ApiError: 403 for a model that is not the caller's, whether it is live or not, else 404 with a list of the
    live models that are.
    """
    caller.check_model(name)
    live = await live_models().find(name)
    if live is None:
        raise model_not_found(name, caller.visible(await live_models().all()))
    return Choice(live)
