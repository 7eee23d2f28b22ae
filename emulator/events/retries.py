"""When Event Grid tries a webhook again, and when it gives up. No I/O.

The numbers are from the documentation, "Event Grid message delivery and retry".
"""

from http import HTTPStatus

RETRY_SECONDS = (10, 30, 60, 300, 600, 1800, 3600, 10800, 21600, 43200)
MINIMUM_DELAYS = {408: 120, 503: 30}
TIME_TO_LIVE_SECONDS = 24 * 3600
SUCCESSES = range(200, 205)
# Webhooks that answer so are misconfigured, or will never take this event: no retry.
FINAL_STATUSES = (400, 401, 403, 413)


def after_attempt(outcome: int | str, attempts: int, age: float, max_attempts: int) -> float | str | None:
    """What follows attempt number ``attempts`` (from 1) at an event published ``age`` seconds ago.

    None: it is delivered. A number: try again in that many seconds. A text: the reason to dead-letter it.
    ``outcome`` is the status of the answer, or a word when there was none.
    """
    if outcome in SUCCESSES:
        return None
    if outcome in FINAL_STATUSES:
        # Guess: the name for 400 is on record (UndeliverableDueToHttpBadRequest); the others follow it.
        return f"UndeliverableDueToHttp{in_words(outcome)}"
    if attempts >= max_attempts:
        return "MaxDeliveryAttemptsExceeded"
    delay = RETRY_SECONDS[min(attempts, len(RETRY_SECONDS)) - 1]
    if isinstance(outcome, int):
        delay = max(delay, MINIMUM_DELAYS.get(outcome, 0))
    return "TimeToLiveExceeded" if age + delay > TIME_TO_LIVE_SECONDS else delay


def in_words(outcome: int | str) -> str:
    """A status as dead letters name it: 400 becomes BadRequest."""
    try:
        return HTTPStatus(int(outcome)).phrase.title().replace(" ", "")
    except ValueError:
        return str(outcome)
