"""Has the evaluation's sampled answers looked at by Azure AI Content Safety, before the gate."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import HttpResponseError

from . import azure_clients
from .errors import StepError
from .runs import Run
from .settings import settings

if TYPE_CHECKING:
    from azure.ai.contentsafety import ContentSafetyClient

log = logging.getLogger("function_app.content_safety")

LONGEST_TEXT = 10_000  # characters (Unicode code points) that one request of the service may have
AT_ONCE = 4  # requests; the smallest tier allows five a second
CONNECT_SECONDS, READ_SECONDS = 5, 20
# Too many requests are waited for here, because the step would begin with the first answer again; no longer than this
# altogether. Whatever else passes with time is left to the run, which repeats the step.
PATIENCE = 120.0  # seconds
PAUSE = 1.0  # seconds, where the service does not say how long


def check(run: Run) -> dict[str, Any]:
    """Return ``{"answers": 5, "severities": {"Hate": 0, …}}``: the highest severity (0, 2, 4, 6) by category.

    No text is kept. Raises StepError when the service refuses an answer or is not there, and what Azure raises when it
    may do it later: the step is repeated then.
    """
    from azure.ai.contentsafety import ContentSafetyClient

    answers = [sample.get("tuned") or "" for sample in run.numbers.get("samples") or []]
    asked = [answer for answer in answers if answer.strip()]  # the service refuses an empty text
    if not asked:
        # Engines that train elsewhere have nothing of the kind; the gate goes by the numbers alone then.
        log.warning("safety run_id=%s answers=0: the engine has sampled none", run.id)
    texts = [piece for answer in asked for piece in pieces(answer)]
    severities: dict[str, int] = {}
    until = time.monotonic() + PATIENCE
    with ContentSafetyClient(settings().content_safety_endpoint, azure_clients.credential()) as client:
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="safety")
        try:
            for found in pool.map(lambda text: _severities(client, text, until), texts):
                severities = {name: max(severities.get(name, 0), found.get(name, 0)) for name in severities | found}
        finally:
            pool.shutdown(cancel_futures=True)  # after an error the others need not be asked
    log.info("safety run_id=%s answers=%d requests=%d severities=%s", run.id, len(asked), len(texts), severities)
    return {"answers": len(asked), "severities": severities}


def pieces(text: str) -> Iterator[str]:
    """The text in parts that the service takes, cut between words where there are any. No part is blank."""
    while len(text) > LONGEST_TEXT:
        cut = max(text.rfind(space, LONGEST_TEXT // 2, LONGEST_TEXT) for space in (" ", "\n")) + 1 or LONGEST_TEXT
        if text[:cut].strip():
            yield text[:cut]
        text = text[cut:]
    if text.strip():
        yield text


def _severities(client: "ContentSafetyClient", text: str, until: float) -> dict[str, int]:
    """What the service finds in one text."""
    from azure.ai.contentsafety.models import AnalyzeTextOptions

    while True:
        try:
            found = client.analyze_text(
                AnalyzeTextOptions(text=text),
                connection_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retry_total=0,
            )
            return {azure_clients.plain(each.category): int(each.severity or 0) for each in found.categories_analysis}
        except HttpResponseError as error:
            if error.status_code in (400, 404):
                raise StepError(_refusal(error)) from None
            pause = _pause(error)
            if error.status_code != 429 or time.monotonic() + pause > until:
                raise
            time.sleep(pause)


def _pause(error: HttpResponseError) -> float:
    headers = getattr(error.response, "headers", None) or {}
    try:
        return max(float(headers.get("Retry-After", PAUSE)), PAUSE)
    except ValueError:  # a date
        return PAUSE


def _refusal(error: HttpResponseError) -> str:
    """By code and status alone: the service's message may repeat what it was sent."""
    if error.status_code == 404:
        return (
            f"Azure AI Content Safety was not found at {settings().content_safety_endpoint}; set the app's"
            " CONTENT_SAFETY_ENDPOINT to the resource's endpoint, https://<name>.cognitiveservices.azure.com, or clear"
            " it to go without"
        )
    code = getattr(error.error, "code", None) or "no code"
    return (
        f"Azure AI Content Safety refused a sampled answer (400, {code}), so it is not known whether the answers are"
        " safe; look at the samples in the run's evaluation"
    )
