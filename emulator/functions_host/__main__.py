"""Run as: python -m emulator.functions_host --app DIR --port P --keys FILE"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvicorn

from .host_settings import AppError, HostSettings, read_host_json
from .http import HttpHost
from .invoke import Invoker
from .keys import Keys
from .loading import LoadedApp, load_app
from .queue import QueueTrigger, connect
from .timer import TimerTrigger

log = logging.getLogger("emulator.functions_host")

# Runs until the event is set.
Listener = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
# How long a stop waits for invocations that run; the supervisor kills after 5 s.
GRACE_SECONDS = 4


def main() -> None:
    """Load the app and serve until SIGTERM or SIGINT; exit code 1 and a sentence if it cannot be loaded."""
    options = _parse_arguments()
    _log_to_stderr()
    try:
        keys = Keys.load(options.keys)
        settings = read_host_json(options.app)
        app = load_app(options.app, os.environ)
        idle = asyncio.run(_serve(app, settings, keys, options))
    except AppError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if not idle:
        # A synchronous function that hangs would keep the interpreter from ending.
        logging.shutdown()
        os._exit(1)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m emulator.functions_host", description=__doc__)
    parser.add_argument("--app", type=Path, required=True, help="the folder of host.json and function_app.py")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keys", type=Path, required=True, help="JSON: masterKey, functionKeys, systemKeys")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--queue-idle-seconds", type=float, default=0.1, help="longest pause between two polls")
    # Azure's is 600 s; a laptop's host is restarted often, and its messages should not be away that long.
    parser.add_argument(
        "--queue-lease-seconds", type=float, default=30, help="how soon messages return when this host dies"
    )
    return parser.parse_args()


async def _serve(app: LoadedApp, settings: HostSettings, keys: Keys, options: argparse.Namespace) -> bool:
    """Run the web server and every listener until a signal; returns whether all invocations ended in time."""
    stopping = asyncio.Event()
    deadline = 0.0
    async with AsyncExitStack() as resources:
        invoker = Invoker(app.folder)
        web = HttpHost(app, settings, keys, invoker)
        listeners = await _listeners(app, settings, invoker, resources, options)
        server = _Server(
            uvicorn.Config(
                web, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS
            )
        )

        def stop() -> None:
            nonlocal deadline
            if not stopping.is_set():
                deadline = time.monotonic() + GRACE_SECONDS
            stopping.set()
            server.should_exit = True

        for signal_number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signal_number, stop)
        address = _bind(options.host, options.port)
        tasks = [asyncio.create_task(listener(stopping)) for listener in listeners]
        for task in tasks:
            # A listener that breaks must not leave a host behind that looks healthy.
            task.add_done_callback(lambda _: stop())
        log.info("event=ready port=%d functions=%d", options.port, len(app.functions))
        await server.serve(sockets=[address])
        stop()
        return await _end(invoker, tasks, deadline)


async def _listeners(
    app: LoadedApp, settings: HostSettings, invoker: Invoker, resources: AsyncExitStack, options: argparse.Namespace
) -> list[Listener]:
    """What to run for the triggers that do not come in by HTTP."""
    listeners: list[Listener] = [TimerTrigger(function, invoker).run for function in app.of_kind("timerTrigger")]
    lease, idle = options.queue_lease_seconds, options.queue_idle_seconds
    for function in app.of_kind("queueTrigger"):
        service = await connect(str(function.trigger.get("connection", "")), function.name, resources)
        listeners.append(QueueTrigger(function, service, settings.queues, invoker, lease, idle).run)
    return listeners


async def _end(invoker: Invoker, tasks: list[asyncio.Task[None]], deadline: float) -> bool:
    """Let invocations end and their messages be settled until ``deadline``; returns whether all went well."""
    drained = await invoker.drain(max(0.1, deadline - time.monotonic()))
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.5, deadline - time.monotonic()))
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [end for end in ends if isinstance(end, Exception)]
    for error in broken:
        log.error("event=listener outcome=failed", exc_info=error)
    log.info("event=stopped")
    return drained and not broken


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to _serve: uvicorn's own handlers end the process before messages are settled."""
        yield


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol named: asyncio sets TCP_NODELAY only then, and without it each answer waits 40 ms.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise AppError(f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port.") from None
    return listener


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    formatter = logging.Formatter(
        "time=%(asctime)s.%(msecs)03dZ level=%(levelname)s logger=%(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # At INFO the Azure SDK writes a paragraph for each request, with signatures in the URLs.
    logging.getLogger("azure").setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
