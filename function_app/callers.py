"""Who is calling the chat API, which models that caller may use, and how many answers at a time."""

from dataclasses import dataclass

from .chat_keys import check_key
from .openai_api import ApiError
from .settings import settings


class Place:
    """One of a caller's answers under way; ``leave`` gives the place back, however often it is called."""

    def leave(self) -> None:
        """The answer has ended, or never began."""


@dataclass(frozen=True)
class Caller:
    """Somebody with a key or a token. ``models`` None: all of them."""

    name: str
    models: frozenset[str] | None = None

    def may_use(self, model: str) -> bool:
        """Whether the caller sees the model at all."""
        return self.models is None or model in self.models

    def check_model(self, model: str) -> None:
        """Raises ApiError (403) for a model that is not the caller's."""
        if not self.may_use(model):
            raise ApiError(
                403, f"This key may not use the model {model[:100]!r}.", param="model", code="model_not_allowed"
            )

    def take_place(self) -> Place:
        """Raises ApiError (429) when the caller has as many answers under way as it may have."""
        return Place()


async def identify(authorization: str) -> Caller:
    """Return whose ``Authorization`` header it is. Raises KeyRefused, or SettingsError for a malformed setting."""
    return Caller(check_key(authorization, settings().chat_api_keys))
