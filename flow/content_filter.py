"""Has a user's message looked at by Azure AI Content Safety before any model sees it. Answers are not looked at."""

import asyncio
import os
import ssl
from collections.abc import Iterator
from typing import Any

import aiohttp
from azure.core.exceptions import AzureError, HttpResponseError
from azure.identity.aio import DefaultAzureCredential
from context_window import is_system
from endpoint_errors import EndpointError, EndpointRefused
from per_loop import PerLoop

LONGEST_TEXT = 10_000  # code points that one request of the service may have
AT_ONCE = 4  # requests for one message; the smallest tier allows five a second
CONNECT_SECONDS, READ_SECONDS = 3, 5
TOTAL_SECONDS = 15  # a message of some hundred pages takes so long; a person is waiting


class ContentRefused(EndpointRefused):
    """The message is not sent to the model. The text says of what kind it is found to be, and does not quote it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, upstream_status=400, param="messages", code="content_filter")


class ContentFilterUnavailable(EndpointError):
    """The service did not say, so the message is not sent: the filter fails closed."""

    kind = "not_configured"  # it is no fault of the endpoint's, so nobody is asked again elsewhere

    def __init__(self, message: str, retry_after: str | None = None) -> None:
        super().__init__(message, retry_after=retry_after, code="content_filter_unavailable")


async def check_severity(messages: list[dict[str, Any]], most: int) -> None:
    """Return when no category of what the user says has a severity above ``most`` (0 none, 2 low, 4 medium, 6 high).

    Looked at is what the user has said since the last answer. Raises ContentRefused and ContentFilterUnavailable.
    """
    texts = list(pieces("\n".join(said_last(messages))))
    if not texts:
        return
    filter_ = await _filters.get()
    try:
        async with asyncio.timeout(TOTAL_SECONDS):
            found = await filter_.severities(texts)
    except (AzureError, aiohttp.ClientError, TimeoutError) as error:
        raise _told(error) from error
    if above := {name: severity for name, severity in found.items() if severity > most}:
        listed = ", ".join(f"{name} {severity}" for name, severity in sorted(above.items()))
        raise ContentRefused(
            f"The message was refused by the content filter: {listed}. This model takes messages up to severity {most} "
            "(0 none, 2 low, 4 medium, 6 high)."
        )


def said_last(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of the user's messages since the assistant last said something."""
    texts: list[str] = []
    for message in reversed(messages):
        if message.get("role") == "user":
            texts[:0] = _texts(message.get("content"))
        elif texts and not is_system(message):
            break
    return texts


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def pieces(text: str) -> Iterator[str]:
    """The text in parts that the service takes, cut between words where there are any. No part is blank."""
    while len(text) > LONGEST_TEXT:
        cut = max(text.rfind(space, LONGEST_TEXT // 2, LONGEST_TEXT) for space in (" ", "\n")) + 1 or LONGEST_TEXT
        if text[:cut].strip():
            yield text[:cut]
        text = text[cut:]
    if text.strip():
        yield text


class _Filter:
    """One event loop's client of the service."""

    def __init__(self) -> None:
        self._endpoint = os.environ.get("CONTENT_SAFETY_ENDPOINT", "").strip()
        if not self._endpoint.startswith("https://"):
            raise ContentFilterUnavailable(
                "The messages to this model are to be looked at by Azure AI Content Safety (chat.max_severity in its "
                "recipe), and the app has none: set CONTENT_SAFETY_ENDPOINT to the resource's endpoint, "
                "https://<name>.cognitiveservices.azure.com."
            )
        # A fifth of a second, which only those pay who have the filter on.
        from azure.ai.contentsafety.aio import ContentSafetyClient
        from azure.core.pipeline.transport import AioHttpTransport

        # As in endpoint.py: aiohttp's own TLS context is made when it is imported; this one reads SSL_CERT_FILE now.
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
        session = aiohttp.ClientSession(connector=connector, auto_decompress=False, trust_env=True)
        self._credential = DefaultAzureCredential()
        self._client = ContentSafetyClient(
            self._endpoint, self._credential, transport=AioHttpTransport(session=session)
        )

    async def severities(self, texts: list[str]) -> dict[str, int]:
        """The highest severity of each category in any of ``texts``."""
        highest: dict[str, int] = {}
        places = asyncio.Semaphore(AT_ONCE)
        asked = [asyncio.create_task(self._look_at(text, places)) for text in texts]
        try:
            for found in await asyncio.gather(*asked):
                highest = {name: max(highest.get(name, 0), found.get(name, 0)) for name in highest | found}
        finally:
            for task in asked:
                task.cancel()
        return highest

    async def _look_at(self, text: str, places: asyncio.Semaphore) -> dict[str, int]:
        async with places:
            found = await self._client.analyze_text(
                {"text": text}, connection_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retry_total=1
            )
        try:
            severities = {str(each["category"]): int(each["severity"]) for each in found["categoriesAnalysis"]}
        except (LookupError, TypeError, ValueError):
            severities = {}
        if not severities:
            raise ContentFilterUnavailable(
                "The message could not be checked, so it was not sent to the model: Azure AI Content Safety answered "
                "without any severity."
            )
        return severities

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
        await self._credential.close()


_filters = PerLoop(_Filter)


def _told(error: Exception) -> EndpointError:
    """By status and code alone: the service's own words may repeat what it was sent."""
    status = error.status_code if isinstance(error, HttpResponseError) else None
    code = getattr(getattr(error, "error", None), "code", None)
    if status == 400:
        return ContentRefused(
            "The message was refused by the content filter: Azure AI Content Safety could not look at it "
            f"({code or 'no code'})."
        )
    why = {
        None: f"did not answer ({type(error).__name__})",
        401: "turned this app away: give its identity the role Cognitive Services User on the resource",
        403: "turned this app away: give its identity the role Cognitive Services User on the resource",
        404: "was not found: set CONTENT_SAFETY_ENDPOINT to the resource's endpoint",
        429: "has too many requests",
    }.get(status, f"answered {status}")
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    return ContentFilterUnavailable(
        f"The message could not be checked, so it was not sent to the model: Azure AI Content Safety {why}.",
        retry_after=headers.get("Retry-After") or "5",
    )
