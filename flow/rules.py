"""What is done with a request before it goes to the model: the flow's input ``rules``, checked."""

from dataclasses import dataclass
from typing import Any

from endpoint_errors import EndpointNotConfigured


@dataclass(frozen=True)
class Rules:
    """The recipe's section ``chat``, and the model's context in tokens (0: not known)."""

    system_prompt: str = ""
    context_length: int = 0
    trim_history: bool = True
    max_severity: int | None = None


def read_rules(given: dict[str, Any]) -> Rules:
    """Return the rules. Raises EndpointNotConfigured for one that does not exist."""
    if unknown := given.keys() - Rules.__dataclass_fields__.keys():
        raise EndpointNotConfigured(
            f"The flow's input rules has {', '.join(sorted(map(repr, unknown)))}; it may have "
            f"{', '.join(Rules.__dataclass_fields__)}."
        )
    return Rules(**given)
