"""Where a call goes: the flow's input ``endpoint``, checked."""

import os
from dataclasses import dataclass, replace
from typing import Any

from endpoint_errors import EndpointNotConfigured
from object_inputs import read_object


@dataclass(frozen=True)
class Place:
    """An endpoint's address and how to talk to it.

    ``deployment``: empty means by the endpoint's traffic. ``key_of``: the id in Resource Manager of an endpoint that is
    opened with its key; empty: with an Entra token. ``wire``: ``mlflow`` for a deployment that takes the scoring
    payload; empty: OpenAI's wire format. ``repeat``: whether a request is sent again when its connection breaks before
    any answer; not when it is itself the second attempt.
    """

    scoring_uri: str = ""
    deployment: str = ""
    key_of: str = ""
    wire: str = ""
    repeat: bool = True


def read_place(given: dict[str, Any]) -> Place:
    """Return the place. Raises EndpointNotConfigured when there is none, or none that tokens may be sent to."""
    place = read_object(Place, "endpoint", given)
    uri = place.scoring_uri or os.environ.get("CHAT_SCORING_URI", "")
    if not uri:
        raise EndpointNotConfigured(
            "The flow has no endpoint to call: give scoring_uri in the input endpoint, or set CHAT_SCORING_URI. With "
            'the local emulator, run eval "$(python -m emulator env)" again once a model is live.'
        )
    if not uri.startswith("https://"):
        raise EndpointNotConfigured(
            f"The scoring URI must start with https://, since a token goes with it; it is {uri!r}."
        )
    return place if uri == place.scoring_uri else replace(place, scoring_uri=uri)
