"""Timer triggers: NCRONTAB schedules in UTC, never two runs of one timer at once, and retry policies."""

import asyncio
import json
import logging
from datetime import UTC, datetime
from functools import partial

from azure.functions.meta import Datum
from croniter import croniter

from .host_settings import AppError, parse_timespan
from .invoke import Invoker, decode
from .loading import LoadedFunction
from .pauses import wait

log = logging.getLogger(__name__)


class Schedule:
    """``{second} {minute} {hour} {day} {month} {day-of-week}``; without the seconds field, second 0.

    Raises AppError for anything else, time spans included: those run on dedicated plans only.
    """

    def __init__(self, expression: str, function: str) -> None:
        fields = expression.split()
        if len(fields) == 5:
            fields.insert(0, "0")
        self._expression = " ".join(fields)
        if len(fields) != 6 or not croniter.is_valid(self._expression, second_at_beginning=True):
            raise AppError(
                f"Function {function!r}: the schedule {expression!r} is not NCRONTAB"
                " ({second} {minute} {hour} {day} {month} {day-of-week})."
            )

    def next_after(self, moment: datetime) -> datetime:
        """The first occurrence after ``moment``. Day and weekday must both match, unlike in crontab."""
        occurrences = croniter(self._expression, moment, second_at_beginning=True, day_or=False)
        following: datetime = occurrences.get_next(datetime)
        return following


class TimerTrigger:
    """Runs one function by its schedule until told to stop."""

    def __init__(self, function: LoadedFunction, invoker: Invoker) -> None:
        self._function = function
        self._schedule = Schedule(str(function.trigger["schedule"]), function.name)
        self._invoker = invoker
        self._retry_delays = _retry_delays(function)

    async def run(self, stopping: asyncio.Event) -> None:
        """Wait and run in turn, so that a slow run delays the next one instead of meeting it."""
        last: datetime | None = None
        if str(self._function.trigger.get("runOnStartup", "")).lower() == "true":
            last = await self._fire(None, stopping)
        while True:
            due = self._schedule.next_after(datetime.now(UTC))
            while (left := (due - datetime.now(UTC)).total_seconds()) > 0:
                # In pieces, because a laptop that sleeps stops the loop's clock but not the wall clock.
                if await wait(stopping, min(left, 30.0)):
                    return
            last = await self._fire(last, stopping)

    async def _fire(self, last: datetime | None, stopping: asyncio.Event) -> datetime:
        started = datetime.now(UTC)
        status = {"Last": last, "Next": self._schedule.next_after(started), "LastUpdated": started}
        info = {
            "IsPastDue": False,
            "Schedule": {"AdjustForDST": True},
            "ScheduleStatus": {name: moment and moment.isoformat() for name, moment in status.items()},
        }
        datum = Datum(json.dumps(info), "json")
        for attempt, delay in enumerate([0.0, *self._retry_delays]):
            if attempt and await wait(stopping, delay):
                break
            argument = partial(decode, self._function, datum, {})
            if (await self._invoker.call(self._function, argument, attempt=attempt)).succeeded:
                break
        return started


def _retry_delays(function: LoadedFunction) -> list[float]:
    """Seconds before each retry, by the function's retry policy; none without one. Raises AppError."""
    policy = function.retry
    if policy is None:
        return []
    where, count = f"Function {function.name!r}: its retry policy", int(policy["max_retry_count"])
    if policy["strategy"] == "fixed_delay":
        return [parse_timespan(policy.get("delay_interval", ""), f"{where}'s delay_interval")] * count
    shortest = parse_timespan(policy.get("minimum_interval", ""), f"{where}'s minimum_interval")
    longest = parse_timespan(policy.get("maximum_interval", ""), f"{where}'s maximum_interval")
    # Guess: plain doubling; the real host adds a random part.
    return [min(shortest * 2.0**attempt, longest) for attempt in range(count)]
