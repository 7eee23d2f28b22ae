"""Asks a new model some of the evaluation's prompts, before anybody else may, and again once it has some traffic."""

import difflib
import logging
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError, ServiceResponseTimeoutError

from .errors import StepError, TransientError
from .recipe import stored_recipe
from .runs import Run

if TYPE_CHECKING:
    from azure.core.pipeline.policies import HTTPPolicy, SansIOHTTPPolicy

    Authorization = HTTPPolicy[Any, Any] | SansIOHTTPPolicy[Any, Any]

log = logging.getLogger("function_app.verification")

QUESTIONS = 5
MAX_TOKENS = 64  # of one answer
LONG_ANSWER = 24  # words; one as long may have been cut, and is compared with the beginning of the evaluation's
# What an endpoint may answer in the first moments of a deployment, or under load (424: the container refused).
NOT_YET = frozenset({404, 408, 424, 429})
# So many in a row before a deployment that is too slow, or that fails while people are waiting for it, is given up.
FAILURES = 2
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")  # scripts without spaces by the character


@dataclass(frozen=True)
class Asked:
    """Where the model is, and how it is asked. ``wire``: "mlflow" for the scoring payload, "" for OpenAI's requests."""

    url: str
    authorization: "Authorization"
    headers: Mapping[str, str]
    wire: str = ""


def ask(run: Run, asked: Asked) -> str:
    """Ask the model a few questions; return a sentence for the history. The figures are put into the run's numbers.

    Raises StepError when an answer is missing or empty or takes longer than the recipe allows, or when the answers are
    not like the evaluation's; TransientError when the model is not ready or too busy.
    """
    release = stored_recipe(run.recipe).release
    longest = release.max_latency_seconds
    samples = _samples(run)
    answers, seconds = _answers(run, asked, samples, longest)
    likeness = [
        agreement(str(sample["tuned"]), answer)
        for sample, answer in zip(samples, answers, strict=True)
        if str(sample.get("tuned") or "").strip()
    ]
    found = {
        "questions": len(answers),
        "agreement": round(statistics.mean(likeness), 3) if likeness else None,
        "latency_p50": round(statistics.median(seconds), 3),
        "latency_max": round(max(seconds), 3),
        "share": run.share,
    }
    run.numbers["verification"] = found
    log.info("verify run_id=%s %s", run.id, " ".join(f"{name}={value}" for name, value in found.items()))
    _judge(run, found, longest, release.min_agreement)
    told = f"{len(answers)} test question{'s' if len(answers) != 1 else ''} answered by the new deployment"
    told += f", {max(seconds):.1f} s at most"
    if likeness:
        told += f"; agreement with the evaluation's answers {100 * statistics.mean(likeness):.0f} %"
    return told


def agreement(expected: str, said: str) -> float:
    """How like the answer is to the evaluation's: 1 the same words in the same order, 0 none in common."""
    right, words = WORDS.findall(expected), WORDS.findall(said)
    if len(words) >= LONG_ANSWER:
        right = right[: len(words)]
    return difflib.SequenceMatcher(None, right, words, autojunk=False).ratio()


def _samples(run: Run) -> list[dict[str, Any]]:
    """The evaluation's prompts, first those that the model had an answer to: an empty one tells nothing."""
    samples = run.numbers.get("samples") or [{"messages": [{"role": "user", "content": "Hello"}]}]
    return sorted(samples, key=lambda sample: not str(sample.get("tuned") or "").strip())[:QUESTIONS]


def _answers(run: Run, asked: Asked, samples: list[dict[str, Any]], longest: float) -> tuple[list[str], list[float]]:
    """The answers, none empty, and the seconds that each took."""
    from azure.core import PipelineClient
    from azure.core.pipeline.policies import RetryPolicy
    from azure.core.rest import HttpRequest, HttpResponse

    answers, seconds = [], []
    policies = [RetryPolicy(retry_read=0), asked.authorization]  # who takes too long is not asked again
    with PipelineClient[HttpRequest, HttpResponse](asked.url, policies=policies) as client:
        for number, sample in enumerate(samples, 1):
            body = _body(run, asked, sample["messages"])
            request = HttpRequest("POST", asked.url, json=body, headers=dict(asked.headers))
            started = time.monotonic()
            try:
                response = client.send_request(request, read_timeout=longest)
            except ServiceResponseTimeoutError as error:
                raise _too_late(run, number, longest) from error
            except AzureError as error:
                raise _not_now(run, f"{type(error).__name__} at test question {number}") from error
            seconds.append(time.monotonic() - started)
            answers.append(_answer(run, asked, response, number))
    return answers, seconds


def _body(run: Run, asked: Asked, messages: list[dict[str, Any]]) -> dict[str, Any]:
    if asked.wire:
        parameters = {"max_new_tokens": MAX_TOKENS, "do_sample": False}
        return {"input_data": {"input_string": messages, "parameters": parameters}, "params": {}}
    return {"model": run.model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def _answer(run: Run, asked: Asked, response: Any, number: int) -> str:
    """The text of an answer. Raises StepError or TransientError."""
    from azure.core.exceptions import HttpResponseError

    if response.status_code in NOT_YET or response.status_code >= 500:
        raise _not_now(run, f"status {response.status_code} at test question {number}")
    try:
        response.raise_for_status()
        told = response.json()
        content = told["output"] if asked.wire else told["choices"][0]["message"]["content"]
    except (HttpResponseError, ValueError, LookupError, TypeError) as error:
        raise StepError(
            f"the new deployment did not answer test question {number}: status {response.status_code}"
            f" ({type(error).__name__}); {_meanwhile(run)}"
        ) from None
    if not str(content or "").strip():
        raise StepError(f"the new deployment gave an empty answer to test question {number}; {_meanwhile(run)}")
    return str(content)


def _not_now(run: Run, what: str) -> Exception:
    """Worth another try, unless people have been waiting for the deployment long enough."""
    if run.share and run.attempts >= FAILURES:
        return StepError(
            f"with {run.share} % of the traffic the new deployment failed {run.attempts + 1} times:"
            f" {what}; {_meanwhile(run)}"
        )
    return TransientError(f"the new deployment: {what}")


def _meanwhile(run: Run) -> str:
    """Who answers now. A model that has a share of the traffic has it beside another, which takes it back."""
    return "the model that served before gets all requests again" if run.share else "no chat was sent to it"


def _too_late(run: Run, number: int, longest: float) -> Exception:
    """The first request of a fresh server may be slow, so once more or twice."""
    told = f"test question {number} took more than the {longest:g} s of release.max_latency_seconds"
    if run.attempts >= FAILURES:
        return StepError(f"the new deployment is too slow: {told}, {run.attempts + 1} times; {_meanwhile(run)}")
    return TransientError(f"the new deployment: {told}")


def _judge(run: Run, found: dict[str, Any], longest: float, least: float) -> None:
    if found["latency_max"] > longest:
        raise StepError(
            f"a test question took the new deployment {found['latency_max']:.1f} s, more than the {longest:g} s of"
            f" release.max_latency_seconds; {_meanwhile(run)}"
        )
    if found["agreement"] is not None and found["agreement"] < least:
        raise StepError(
            f"the new deployment answers otherwise than the evaluation: agreement {found['agreement']:.2f}, and"
            f" release.min_agreement is {least:g}; {_meanwhile(run)}"
        )
