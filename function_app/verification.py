"""Asks a new model a few of the evaluation's prompts, before anybody else may."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import StepError, TransientError
from .runs import Run

if TYPE_CHECKING:
    from azure.core.pipeline.policies import HTTPPolicy, SansIOHTTPPolicy

    Authorization = HTTPPolicy[Any, Any] | SansIOHTTPPolicy[Any, Any]

TIMEOUT = 60  # seconds for one question
QUESTIONS = 3
# What an endpoint may answer in the first moments of a deployment, or under load (424: the container refused).
NOT_YET = frozenset({404, 408, 424, 429})


def ask(run: Run, url: str, authorization: "Authorization", headers: Mapping[str, str]) -> str:
    """Ask the model at ``url`` a few questions; return a sentence for the history.

    Raises StepError when it does not answer each with some text, and TransientError when it is not ready or too busy.
    """
    from azure.core import PipelineClient
    from azure.core.exceptions import HttpResponseError
    from azure.core.pipeline.policies import RetryPolicy
    from azure.core.rest import HttpRequest, HttpResponse

    samples = run.numbers.get("samples") or [{"messages": [{"role": "user", "content": "Hello"}]}]
    policies = [RetryPolicy(), authorization]
    with PipelineClient[HttpRequest, HttpResponse](url, policies=policies) as client:
        for index, sample in enumerate(samples[:QUESTIONS], 1):
            body = {"model": run.model, "messages": sample["messages"], "max_tokens": 64, "temperature": 0}
            request = HttpRequest("POST", url, json=body, headers=dict(headers))
            response = client.send_request(request, read_timeout=TIMEOUT)
            if response.status_code in NOT_YET or response.status_code >= 500:
                raise TransientError(f"the new deployment answered {response.status_code} to test question {index}")
            try:
                response.raise_for_status()
                content = response.json()["choices"][0]["message"]["content"]
            except (HttpResponseError, ValueError, LookupError, TypeError) as error:
                raise StepError(
                    f"the new deployment did not answer test question {index}: status {response.status_code}"
                    f" ({type(error).__name__}); the model that served before still serves"
                ) from None
            if not str(content or "").strip():
                raise StepError(f"the new deployment gave an empty answer to test question {index}")
    asked = min(len(samples), QUESTIONS)
    return f"{asked} test question{'s' if asked != 1 else ''} answered by the new deployment"
