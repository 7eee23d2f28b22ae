"""Runs the Prompt Flow of ``flow/``; the only file that knows of Prompt Flow, so the only one to replace with it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

FLOW_FILE = Path(__file__).resolve().parent.parent / "flow" / "flow.dag.yaml"


class FlowError(Exception):
    """The flow gave no answer. ``kind`` is one of those in flow/endpoint_errors.py."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.kind: str = getattr(error, "kind", "")
        self.upstream_status: int | None = getattr(error, "upstream_status", None)
        self.retry_after: str | None = getattr(error, "retry_after", None)
        self.param: str | None = getattr(error, "param", None)
        self.code: str | None = getattr(error, "code", None)
        self.cause: str = type(error.__cause__ or error).__name__


class FlowStream:
    """The chunks of a streamed answer, ``first`` the first of them.

    ``aclose`` closes the connection to the endpoint, read or unread.
    """

    def __init__(self, first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]]) -> None:
        self.first = first
        self._unread: dict[str, Any] | None = first
        self._chunks = chunks

    def __aiter__(self) -> "FlowStream":
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Raises FlowError when the endpoint fails in the middle."""
        if self._unread is not None:
            first, self._unread = self._unread, None
            return first
        try:
            return await anext(self._chunks)
        except Exception as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        """Stop the flow's generators, whichever of them have begun."""
        await _close(self._chunks)


class FlowRunner:
    """One flow, loaded once and run for each request."""

    def __init__(self, flow_file: Path = FLOW_FILE) -> None:
        # Prompt Flow logs the text of every failure, and an endpoint's refusal may quote the prompt. Its loggers
        # read their level when they are imported; what is worth knowing is in the exception and is logged by chat.py.
        os.environ["PF_LOGGING_LEVEL"] = "CRITICAL"
        # It would also write every node's inputs as JSON, only to see whether that can be done.
        os.environ["PF_SKIP_SERIALIZATION_CHECK"] = "true"
        from promptflow.executor import FlowExecutor
        from promptflow.storage import AbstractRunStorage

        class NoStorage(AbstractRunStorage):  # type: ignore[misc]
            """Keeps no record of a run: prompts and answers are nobody's business here."""

            def persist_node_run(self, run_info: Any) -> None:
                pass

            def persist_flow_run(self, run_info: Any) -> None:
                pass

        self._executor = FlowExecutor.create(
            flow_file, connections={}, working_dir=flow_file.parent, storage=NoStorage()
        )

        self._running = 0
        self._streams = sys.stdout, sys.stderr

    async def run(self, inputs: dict[str, Any]) -> dict[str, Any] | FlowStream:
        """Return the flow's ``answer``: a chat.completion, or its chunks when ``inputs["stream"]``.

        Raises FlowError. A caller that is cancelled leaves the flow to end by its own time limits, because
        Prompt Flow ends the whole process some seconds after a run is cancelled.
        """
        run = asyncio.create_task(self._answer(inputs))
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            run.add_done_callback(_close_unwanted)
            raise

    async def _answer(self, inputs: dict[str, Any]) -> dict[str, Any] | FlowStream:
        try:
            with self._standard_streams_kept():
                result = await self._executor.exec_line_async(inputs, allow_generator_output=True)
            answer = result.output["answer"]
            if isinstance(answer, dict):
                return answer
            # The endpoint's first chunk is there already. Taking it starts every generator between it and here,
            # and only a generator that has started can be closed.
            return FlowStream(await anext(answer), answer)
        except Exception as error:
            raise _translated(error) from error

    @contextmanager
    def _standard_streams_kept(self) -> Iterator[None]:
        """Put sys.stdout and sys.stderr back: Prompt Flow replaces them, for good once two runs overlap."""
        if self._running == 0:
            self._streams = sys.stdout, sys.stderr
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                sys.stdout, sys.stderr = self._streams


def _translated(error: Exception) -> Exception:
    """The flow's own exception, taken out of Prompt Flow's wrapping; other errors are bugs and stay as they are."""
    inner = getattr(error, "inner_exception", None) or error
    return FlowError(inner) if hasattr(inner, "kind") else error


_closing: set[asyncio.Task[None]] = set()


def _close_unwanted(run: "asyncio.Task[dict[str, Any] | FlowStream]") -> None:
    if not run.cancelled() and run.exception() is None and isinstance(stream := run.result(), FlowStream):
        task = asyncio.ensure_future(stream.aclose())
        _closing.add(task)
        task.add_done_callback(_closing.discard)


async def _close(chunks: Any) -> None:
    # With Prompt Flow's tracing on, the generator sits in a proxy that cannot be closed, only let go of.
    if hasattr(chunks, "aclose"):
        await chunks.aclose()


@lru_cache(maxsize=1)
def flow_runner() -> FlowRunner:
    """The app's flow. The first call imports Prompt Flow, which takes about a second."""
    return FlowRunner()
