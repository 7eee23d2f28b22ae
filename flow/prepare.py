"""Node: turn the flow's inputs into one call of the endpoint."""

from typing import Any

from endpoint import EndpointCall
from place import read_place
from promptflow.core import tool
from rules import read_rules
from scoring_payload import MLFLOW, to_payload


@tool  # type: ignore[untyped-decorator]
async def prepare(
    messages: list[dict[str, Any]],
    parameters: dict[str, Any],
    model: str,
    stream: bool,
    endpoint: dict[str, Any],
    rules: dict[str, Any],
) -> EndpointCall:
    """Return what to send where. Raises EndpointNotConfigured when there is nowhere to send it."""
    place = read_place(endpoint)
    read_rules(rules)
    if place.wire == MLFLOW:
        body = to_payload(messages, parameters)
    else:
        body = {**parameters, "messages": messages}
        if model:
            body["model"] = model
        if stream:
            body["stream"] = True
    return EndpointCall(place=place, body=body, stream=stream, model=model, stop=parameters.get("stop"))
