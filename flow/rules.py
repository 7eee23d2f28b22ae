"""What is done with a request before it goes to the model: the flow's input ``rules``, checked."""

from dataclasses import dataclass
from typing import Any

from endpoint_errors import EndpointNotConfigured


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


_TYPES: dict[str, tuple[type, ...]] = {
    "system_prompt": (str,),
    "context_length": (int,),
    "trim_history": (bool,),
    "max_severity": (int, type(None)),
    "timed": (bool,),
}


def read_rules(given: dict[str, Any]) -> Rules:
    """Return the rules. Raises EndpointNotConfigured for one that does not exist or is of another type."""
    for name, value in given.items():
        if name not in _TYPES:
            raise EndpointNotConfigured(
                f"The flow's input rules has {name!r}; it may have {', '.join(Rules.__dataclass_fields__)}."
            )
        if type(value) not in _TYPES[name]:
            wanted = " or ".join(kind.__name__.replace("NoneType", "null") for kind in _TYPES[name])
            raise EndpointNotConfigured(f"The flow's input rules.{name} must be {wanted}, and is {value!r}.")
    return Rules(**given)
