"""The flow's inputs that are objects, checked: Prompt Flow itself lets any object through."""

from functools import lru_cache
from typing import Any, TypeVar, get_args, get_type_hints

from endpoint_errors import EndpointNotConfigured

Value = TypeVar("Value")


def read_object(kind: type[Value], name: str, given: dict[str, Any]) -> Value:
    """Return the dataclass ``kind`` made of the flow's input ``name``.

    Raises EndpointNotConfigured for a field that does not exist or is of another type.
    """
    types = _types(kind)
    for field, value in given.items():
        if field not in types:
            raise EndpointNotConfigured(f"The flow's input {name} has {field!r}; it may have {', '.join(types)}.")
        if type(value) not in types[field]:
            wanted = " or ".join(each.__name__.replace("NoneType", "null") for each in types[field])
            raise EndpointNotConfigured(f"The flow's input {name}.{field} must be {wanted}, and is {value!r}.")
    return kind(**given)


@lru_cache
def _types(kind: type) -> dict[str, tuple[type, ...]]:
    return {field: get_args(hint) or (hint,) for field, hint in get_type_hints(kind).items()}
