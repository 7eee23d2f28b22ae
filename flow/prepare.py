"""Node: turn the flow's inputs into one call of the endpoint."""

import os
from typing import Any

from endpoint import EndpointCall
from endpoint_errors import EndpointNotConfigured
from promptflow.core import tool
from scoring_payload import MLFLOW, to_payload


@tool  # type: ignore[untyped-decorator]
async def prepare(
    messages: list[dict[str, Any]],
    parameters: dict[str, Any],
    model: str,
    scoring_uri: str,
    deployment: str,
    key_of: str,
    wire: str,
    stream: bool,
) -> EndpointCall:
    """Return what to send where. Raises EndpointNotConfigured when there is nowhere to send it."""
    uri = scoring_uri or os.environ.get("CHAT_SCORING_URI", "")
    if not uri:
        raise EndpointNotConfigured(
            "The flow has no endpoint to call: give the input scoring_uri, or set CHAT_SCORING_URI. With the "
            'local emulator, run eval "$(python -m emulator env)" again once a model is live.'
        )
    if not uri.startswith("https://"):
        raise EndpointNotConfigured(
            f"The scoring URI must start with https://, since a token goes with it; it is {uri!r}."
        )
    place: dict[str, Any] = {"uri": uri, "deployment": deployment, "key_of": key_of, "stream": stream}
    if wire == MLFLOW:
        stop = parameters.get("stop")
        return EndpointCall(**place, wire=wire, body=to_payload(messages, parameters), model=model, stop=stop)
    body: dict[str, Any] = {**parameters, "messages": messages}
    if model:
        body["model"] = model
    if stream:
        body["stream"] = True
    return EndpointCall(**place, body=body)
