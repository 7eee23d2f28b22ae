"""Which deployment a chat request means by its ``model``: a live model's name, alone or with ``@`` and what pins it.

A pin is a version of the model or the name of a deployment. The live record knows of two: the one that is live, and,
for a while, the one that it has replaced.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from .callers import Caller
from .live import Kept, LiveModel, live_models
from .openai_api import ApiError, model_not_found

DEPLOYMENT = re.compile(r"r-[0-9a-f]{12}")  # as runs.Run.deployment names them


@dataclass(frozen=True)
class Choice:
    """What ``asked``, the name in the request, means: a live model and, when it is pinned, the deployment's name.

    Where the replaced deployment is pinned, ``live`` says how that one is asked.
    """

    live: LiveModel
    deployment: str = ""
    asked: str = ""

    @property
    def pinned(self) -> bool:
        """Whether nothing else may answer."""
        return bool(self.deployment) or "@" in self.asked


async def choose(name: str, caller: Caller) -> Choice:
    """Return what ``name`` means now.

    Raises ApiError: 403 for a model that is not the caller's, whether it is live or not, else 404 with a list of the
    live models that are, or of what can be pinned.
    """
    model, at, pin = name.partition("@")
    caller.check_model(model)
    live = await live_models().find(model)
    if live is None:
        raise await not_live(name, caller)
    if not at:
        return Choice(live, "", name)
    found = _pinned(live, pin)
    if found is None and (newer := await live_models().find_newer(model)):  # the version may have gone live just now
        live, found = newer, _pinned(newer, pin)
    if found:
        return Choice(found, found.deployment, name)
    # One that the record does not know, such as a challenger that takes a share of the traffic: the endpoint will say.
    if live.deployment and DEPLOYMENT.fullmatch(pin):
        return Choice(live, pin, name)
    raise pin_not_found(name, live)


def pin_not_found(name: str, live: LiveModel) -> ApiError:
    """The answer to a pin of a live model that leads nowhere."""
    pins = [f"{live.model}@{pin}" for pin in (*versions(live), *deployments(live))]
    there = ", ".join(pin for pin in pins if pin != name)
    text = f"{name[:100]!r} is not there. {live.model} is live" + (f", and can be pinned as {there}." if there else ".")
    return ApiError(404, text, param="model", code="model_not_found")


async def pin_gone(choice: Choice, caller: Caller) -> ApiError:
    """The answer when the endpoint knows nothing of the deployment that ``choice`` pins."""
    now = await live_models().find_again(choice.live.model)
    return pin_not_found(choice.asked, now) if now else await not_live(choice.asked, caller)


async def not_live(name: str, caller: Caller) -> ApiError:
    """The answer to a name that no live model has."""
    return model_not_found(name, caller.visible(await live_models().all()), limited=caller.models is not None)


def versions(live: LiveModel) -> list[str]:
    """The versions of the model that can be asked by name, the live one first."""
    kept = _kept(live)
    known = [live.model_version, kept.model_version if kept else ""]
    return [version for version in known if version]


def deployments(live: LiveModel) -> list[str]:
    """The deployments that can be asked by name, the live one first."""
    kept = _kept(live)
    known = [live.deployment, kept.deployment if kept else ""]
    return [deployment for deployment in known if deployment]


def _kept(live: LiveModel) -> Kept | None:
    """The replaced deployment as long as it is there."""
    kept = live.replaced
    return kept if kept and (kept.until is None or kept.until > datetime.now(UTC)) else None


def _pinned(live: LiveModel, pin: str) -> LiveModel | None:
    """The record with which the version or deployment is asked; None when ``live`` knows of none such."""
    if not pin:
        return None
    if pin in (live.model_version, live.deployment):
        return live
    kept = _kept(live)
    if kept is None or pin not in (kept.model_version, kept.deployment):
        return None
    return msgspec.structs.replace(
        live,
        deployment=kept.deployment,
        model_version=kept.model_version,
        wire=kept.wire,
        scoring_uri=kept.scoring_uri or live.scoring_uri,
        replaced=None,
        run_id="",  # the record does not say
        since="",
    )
