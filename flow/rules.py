"""What is done with a request before it goes to the model: the flow's input ``rules``, checked."""

from dataclasses import dataclass
from typing import Any

from object_inputs import read_object


@dataclass(frozen=True)
class Rules:
    """The recipe's section ``chat``, and the model's context in tokens (0: not known).

    ``timed``: a whole answer says in ``seconds`` how long it took, for flow/evaluation.
    """

    system_prompt: str = ""
    context_length: int = 0
    trim_history: bool = True
    max_severity: int | None = None
    timed: bool = False


def read_rules(given: dict[str, Any]) -> Rules:
    """Return the rules. Raises EndpointNotConfigured for one that does not exist or is of another type."""
    return read_object(Rules, "rules", given)
