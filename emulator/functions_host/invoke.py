"""Runs one function once: context, thread pool or event loop, one log line for the outcome."""

import asyncio
import logging
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import azure.functions as func
from azure.functions.meta import Datum

from .host_settings import AppError
from .loading import LoadedFunction
from .pauses import wait
from .signatures import converter

log = logging.getLogger(__name__)

# The worker's setting and its ceiling for the pool that runs synchronous functions.
THREADS_SETTING = "PYTHON_THREADPOOL_THREAD_COUNT"
MAX_THREADS = 32


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended. A failed one has been logged, with its traceback."""

    succeeded: bool
    value: Any = None


class Invoker:
    """Calls functions and keeps count of those that run, so that a stop can wait for them."""

    def __init__(self, folder: Path, settings: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(_thread_count(settings), thread_name_prefix="function")
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def call(
        self,
        function: LoadedFunction,
        argument: Callable[[], Any],
        encode: Callable[[Any], Any] | None = None,
        attempt: int = 0,
    ) -> Outcome:
        """Decode (``argument``), call, ``encode`` the result; any of these failing fails it."""
        context = InvocationContext(function.name, self._folder, attempt, _max_retries(function))
        self._running += 1
        self._idle.clear()
        started = time.monotonic()
        outcome = "cancelled"
        try:
            value = await self._run(function, argument(), context)
            if encode is not None:
                value = encode(value)
            elif value is not None:
                # The worker's rule: a function without an output binding returns None.
                raise RuntimeError(f"{function.name!r} has no $return binding but returned a non-None value")
            outcome = "succeeded"
            return Outcome(True, value)
        except Exception:  # the outermost edge of the app's code
            outcome = "failed"
            log.exception("event=exception function=%s id=%s", function.name, context.invocation_id)
            return Outcome(False)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
            milliseconds = (time.monotonic() - started) * 1000
            log.info(
                "event=invocation function=%s id=%s outcome=%s ms=%.1f",
                function.name, context.invocation_id, outcome, milliseconds,
            )  # fmt: skip

    async def _run(self, function: LoadedFunction, argument: Any, context: "InvocationContext") -> Any:
        arguments = {function.parameter: argument}
        if function.wants_context:
            arguments["context"] = context
        if function.is_async:
            return await function.call(**arguments)

        def in_thread() -> Any:
            context.thread_local_storage.invocation_id = context.invocation_id
            return function.call(**arguments)

        return await asyncio.get_running_loop().run_in_executor(self._pool, in_thread)

    async def drain(self, seconds: float) -> bool:
        """Wait until nothing runs, at most ``seconds``; returns whether that was reached."""
        idle = await wait(self._idle, seconds)
        if not idle:
            log.warning("event=stop outcome=abandoned invocations=%d", self._running)
        return idle


def decode(function: LoadedFunction, datum: Datum, metadata: Mapping[str, Datum]) -> Any:
    """The trigger's argument, by the converter that the worker itself would use."""
    if function.converter == "generic":
        return datum.value
    return converter(function.converter).decode(datum, trigger_metadata=metadata)


class InvocationContext(func.Context):
    """The ``context`` parameter of a function."""

    _local = threading.local()

    def __init__(self, name: str, folder: Path, attempt: int, max_attempts: int) -> None:
        self._name = name
        self._folder = folder
        self._id = str(uuid.uuid4())
        self._retry = SimpleNamespace(retry_count=attempt, max_retry_count=max_attempts, exception=None)

    @property
    def invocation_id(self) -> str:
        return self._id

    @property
    def thread_local_storage(self) -> Any:
        return self._local

    @property
    def function_name(self) -> str:
        return self._name

    @property
    def function_directory(self) -> str:
        return str(self._folder)

    @property
    def trace_context(self) -> Any:
        parent = f"00-{self._id.replace('-', '')}-{secrets.token_hex(8)}-00"
        return SimpleNamespace(trace_parent=parent, trace_state="", attributes={})

    @property
    def retry_context(self) -> Any:
        return self._retry


def _max_retries(function: LoadedFunction) -> int:
    return int(function.retry["max_retry_count"]) if function.retry else 0


def _thread_count(settings: Mapping[str, str]) -> int | None:
    text = settings.get(THREADS_SETTING)
    if text is None:
        return None  # as the worker: Python's own default, min(32, cores + 4)
    if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise AppError(f"{THREADS_SETTING} must be 1 to {MAX_THREADS}, found {text!r}.")
    return int(text)
