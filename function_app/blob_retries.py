"""One request to blob storage, repeated while the failure is a passing one.

azure-storage-blob 12.31 repeats by itself too, but after 12 to 27 seconds each time and whatever Retry-After says, so
callers pass ``**ONCE`` with each request, and the patience is here. One repetition of the SDK cannot be turned off: a
body that breaks off while ``download_blob`` reads it is asked for twice more, a second apart. After that the range has
had its chances, and is not asked for again here.
"""

import random
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any, TypeVar

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

T = TypeVar("T")

# No repetition by the SDK, and no minute's wait for a connection that has gone quiet.
ONCE: Mapping[str, Any] = {"retry_total": 0, "connection_timeout": 10, "read_timeout": 20}
ATTEMPTS = 5
FIRST_PAUSE = 0.3  # seconds; doubled each time
LONGEST_PAUSE = 30.0  # of what a server may ask for by Retry-After
PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class Stopped(Exception):
    """The caller has lost interest; nothing more is asked for."""


class ShortAnswer(AzureError):
    """Storage said that all was well and sent another number of bytes than was asked for."""


def retrying(request: Callable[[], T], stop: Event) -> T:
    """The result of ``request``, which may be repeated; raises its last error, or Stopped once ``stop`` is set."""
    from urllib3.exceptions import HTTPError  # here, as it is not cheap and a cold start has no use for it

    for attempt in range(ATTEMPTS):
        if stop.is_set():
            raise Stopped
        try:
            return request()
        except (AzureError, HTTPError, OSError) as error:
            if attempt == ATTEMPTS - 1 or not _passes(error):
                raise
            pause = max(_asked_for(error), FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311
        stop.wait(pause)
    raise AssertionError("unreachable")


def _passes(error: Exception) -> bool:
    from urllib3.exceptions import HTTPError

    if isinstance(error, ClientAuthenticationError):
        return False
    if isinstance(error, HttpResponseError):
        # Without a status it is a body that broke off three times.
        return error.status_code in PASSING_STATUS
    # HTTPError and OSError: what the SDK lets through from a broken connection, such as an error of TLS.
    return isinstance(error, (ServiceRequestError, ServiceResponseError, ShortAnswer, HTTPError, OSError))


def _asked_for(error: Exception) -> float:
    """Retry-After in seconds, 0 without one; storage sends seconds, never a date."""
    response = getattr(error, "response", None)
    try:
        return min(LONGEST_PAUSE, max(0.0, float(response.headers["Retry-After"]))) if response is not None else 0.0
    except (KeyError, ValueError, AttributeError):
        return 0.0
