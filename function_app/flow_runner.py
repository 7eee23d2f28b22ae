"""Runs the Prompt Flow of ``flow/``; the only file that knows of Prompt Flow, so the only one to replace with it."""

import gc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from types import ModuleType
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
        self.final: bool = getattr(error, "final", False)
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
        except StopAsyncIteration:
            raise  # as it is: with itself as its cause it would keep all its frames until the next collection
        except Exception as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        """Stop the flow's generators, whichever of them have begun."""
        await _close(self._chunks)


class FlowRunner:
    """One flow, loaded once and run for each request by Prompt Flow's executor."""

    def __init__(self, flow_file: Path = FLOW_FILE) -> None:
        # Prompt Flow logs the text of every failure, and an endpoint's refusal may quote the prompt. Its loggers
        # read their level when they are imported; what is worth knowing is in the exception and is logged by chat.py.
        os.environ["PF_LOGGING_LEVEL"] = "CRITICAL"
        # It would also write every node's inputs as JSON, only to see whether that can be done.
        os.environ["PF_SKIP_SERIALIZATION_CHECK"] = "true"
        _without_the_development_kit()
        with _without_the_openai_package():
            from promptflow.executor import FlowExecutor, flow_executor

            # It would wrap openai's calls, and warn six times that the stand-in has none.
            _replace(flow_executor, "setup_exporter_from_environ", lambda: None)
            self._executor = FlowExecutor.create(
                flow_file, connections={}, working_dir=flow_file.parent, storage=_no_storage()
            )
        _tune(self._executor)

    async def run(self, inputs: dict[str, Any]) -> dict[str, Any] | FlowStream:
        """Return the flow's ``answer``: a chat.completion, or its chunks when ``inputs["stream"]``.

        Raises FlowError. Cancelling it cancels the node that is running, and so closes the connection to the endpoint.
        """
        try:
            result = await self._executor.exec_line_async(inputs, allow_generator_output=True)
            answer = result.output["answer"]
            if isinstance(answer, dict):
                return answer
            # The endpoint's first chunk is there already. Taking it starts every generator between it and here,
            # and only a generator that has started can be closed.
            return FlowStream(await anext(answer), answer)
        except Exception as error:
            raise _translated(error) from error


def _without_the_development_kit() -> None:
    """Make ``promptflow`` what it is in Azure, where promptflow-core is alone: a namespace with nothing in it.

    On a laptop it is also the development kit, whose ``__init__`` imports all of pf, databases included, for a second.
    """
    spec = importlib.util.find_spec("promptflow")
    if "promptflow" not in sys.modules and spec and spec.submodule_search_locations and spec.has_location:
        bare = importlib.machinery.ModuleSpec("promptflow", None, is_package=True)
        bare.submodule_search_locations = spec.submodule_search_locations
        sys.modules["promptflow"] = importlib.util.module_from_spec(bare)


@contextmanager
def _without_the_openai_package() -> Iterator[None]:
    """Spare the first chat a third of a second: Prompt Flow imports all of openai, for tracing and its exceptions.

    Nothing in the flow uses it: while Prompt Flow is loaded, a stand-in gives it exceptions that nobody raises. Whoever
    imports openai afterwards gets the real one.
    """
    if "openai" in sys.modules:
        yield
        return
    standin = ModuleType("openai")
    standin.__getattr__ = _exception_called  # type: ignore[method-assign]
    sys.modules["openai"] = standin
    try:
        yield
    finally:
        del sys.modules["openai"]


def _exception_called(name: str) -> type[Exception]:
    if name.startswith("_"):
        raise AttributeError(name)
    return type(name, (Exception,), {})


def _no_storage() -> Any:
    from promptflow.storage import AbstractRunStorage

    class NoStorage(AbstractRunStorage):  # type: ignore[misc]
        """Keeps no record of a run: prompts and answers are nobody's business here."""

        def persist_node_run(self, run_info: Any) -> None:
            pass

        def persist_flow_run(self, run_info: Any) -> None:
            pass

    return NoStorage()


def _tune(executor: Any) -> None:
    """Take out of Prompt Flow's executor what one chat does not need and every chat would pay for.

    This leans on what promptflow-core 1.18.1 is inside. Whatever is replaced must be there, so AttributeError, at the
    first chat and in tests/unit/test_flow_runner.py, says that another version has come.
    """
    _replace(executor, "_traverse_nodes_async", _nodes_in_turn(executor))
    # It would describe the run to telemetry and to the openai package, which it imports; neither is used here.
    _replace(executor, "_update_operation_context", lambda run_id, index: nullcontext())  # noqa: ARG005
    # It would put writers in the place of sys.stdout and sys.stderr (for good, once two runs overlap) and keep what
    # the nodes print: these print nothing.
    _replace(executor._run_tracker, "node_log_manager", nullcontext())
    # It would look through all messages for objects that name images, to load them; openai_api.py refuses those too.
    _replace(executor, "_multimedia_processor", _NoImages())
    # It would complete the record of the run, which nobody reads.
    _replace(executor, "_exec_post_process", lambda *arguments: None)  # noqa: ARG005


class _NoImages:
    def load_multimedia_data(self, inputs: Any, line_inputs: Any) -> Any:  # noqa: ARG002
        return line_inputs


def _replace(owner: Any, name: str, new: Any) -> None:
    getattr(owner, name)
    setattr(owner, name, new)


def _nodes_in_turn(executor: Any) -> Callable[[Any, Any], Awaitable[tuple[dict[str, Any], dict[str, Any]]]]:
    """FlowExecutor._traverse_nodes_async for a flow whose nodes follow one another: each is awaited where it is.

    Prompt Flow's scheduler makes a pool of threads for each run, two tasks for each node and a record of each node's
    run, and looks anew for the order; that is two thirds of what it costs. And when a run is cancelled, it ends the
    whole process some seconds later. Raises ValueError for a flow that needs the scheduler.
    """
    from promptflow.executor._input_assignment_parser import parse_value

    steps: list[tuple[str, Callable[..., Awaitable[Any]], list[tuple[str, Any]]]] = []
    for node in executor._flow.nodes:
        known = {name for name, _, _ in steps}
        if node.activate or node.aggregation or not set(_upstream(node)) <= known:
            raise ValueError(f"The node {node.name} of the flow is not one that simply follows those before it.")
        steps.append((node.name, executor._tools_manager.get_tool(node.name), list(node.inputs.items())))

    async def run(inputs: Any, context: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ARG001
        outputs: dict[str, Any] = {}
        for node, tool, given in steps:
            outputs[node] = await tool(**{name: parse_value(value, outputs, inputs) for name, value in given})
        return executor._extract_outputs(outputs, {}, inputs), outputs

    return run


def _upstream(node: Any) -> list[str]:
    from promptflow.contracts.flow import InputValueType

    return [given.value for given in node.inputs.values() if given.value_type == InputValueType.NODE_REFERENCE]


def _translated(error: Exception) -> Exception:
    """The flow's own exception, taken out of Prompt Flow's wrapping; other errors are bugs and stay as they are."""
    inner = getattr(error, "inner_exception", None) or error
    return FlowError(inner) if hasattr(inner, "kind") else error


async def _close(chunks: Any) -> None:
    # With Prompt Flow's tracing on, the generator sits in a proxy that cannot be closed, only let go of.
    if hasattr(chunks, "aclose"):
        await chunks.aclose()


@lru_cache(maxsize=1)
def flow_runner() -> FlowRunner:
    """The app's flow. The first call imports Prompt Flow, which takes half a second.

    What is in memory by then stays: as long as the collector of cycles went through all of it, every few hundred
    requests it stopped every answer under way for a quarter of a second.
    """
    gc.disable()
    try:
        return FlowRunner()
    finally:
        gc.freeze()
        gc.enable()
