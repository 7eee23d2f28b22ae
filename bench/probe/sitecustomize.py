"""Measures every `advance` of a function app from outside: Python loads this by its name, from PYTHONPATH.

With BENCH_PROBE set, the Functions host appends to that file one JSON line for each invocation: when it began and
ended, its processor time, and the requests that it sent, by kind. Nothing of the app is changed for it.
"""

import json
import os
import sys
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

_calls = threading.local()


def _kind(method: str, url: str) -> str:
    """``blob read``, ``blob write``, ``blob list``, ``queue``, ``token``, ``ml`` or ``model``."""
    parts = urlsplit(url)
    if parts.path.startswith("/devstoreaccount1/"):
        if parts.path.count("/") == 3 and parts.path.endswith("/messages"):
            return "queue"
        if "comp=list" in parts.query and "restype=container" in parts.query:
            return "blob list"
        return "blob read" if method in ("GET", "HEAD") else "blob write"
    if "/msi/" in parts.path or "resource=" in parts.query:
        return "token"
    return "ml get" if method in ("GET", "HEAD") else "ml put"


def _watch_requests() -> None:
    from azure.core.pipeline.transport import RequestsTransport

    send = RequestsTransport.send

    def counted(self: Any, request: Any, **more: Any) -> Any:
        try:
            return send(self, request, **more)
        finally:
            found = getattr(_calls, "found", None)
            if found is not None:
                kind = _kind(request.method, request.url)
                found[kind] += 1
                if os.environ.get("BENCH_PROBE_URLS"):
                    _calls.urls.append(
                        f"{request.method} {urlsplit(request.url)._replace(scheme='', netloc='').geturl()}"[:220]
                    )

    RequestsTransport.send = counted  # type: ignore[method-assign]


def _measured(advance: Any, file: str) -> Any:
    def measured(id: str, *arguments: Any) -> None:
        _calls.found, _calls.urls = Counter(), []
        at, began, cpu = time.time(), time.perf_counter(), time.thread_time()
        try:
            return advance(id, *arguments)
        finally:
            line = {
                "run": id, "at": at, "seconds": time.perf_counter() - began, "cpu": time.thread_time() - cpu,
                "calls": _calls.found,
            }  # fmt: skip
            if _calls.urls:
                line["urls"] = _calls.urls
            with open(file, "a", encoding="utf-8") as lines:  # one write of less than a page: lines do not mix
                lines.write(json.dumps(line) + "\n")

    return measured


def _install(file: str) -> None:
    import azure.functions as func

    register = func.FunctionApp.register_functions

    def registered(self: Any, blueprint: Any) -> None:
        module = sys.modules.get("function_app.advance")
        if module and not hasattr(module.advance, "probe"):
            module.advance = _measured(module.advance, file)
            module.advance.probe = True
            _watch_requests()
        register(self, blueprint)

    func.FunctionApp.register_functions = registered  # type: ignore[method-assign]


if "emulator.functions_host" in sys.orig_argv and os.environ.get("BENCH_PROBE"):
    _install(os.environ["BENCH_PROBE"])
