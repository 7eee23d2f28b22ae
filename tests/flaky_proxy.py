"""A proxy in front of Azurite that breaks things on request: it ends TLS itself, so it can lie about single answers."""

import http.client
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of ``method`` whose range or query contains ``where``."""

    method: str = "GET"
    where: str = ""
    times: int = 1
    status: int = 0  # answered instead of asking Azurite
    retry_after: int | None = None
    drop: bool = False  # the connection closes without an answer
    lose_answer: bool = False  # Azurite has done it, but nobody is told
    cut_after: int | None = None  # bytes of the body, then the connection closes
    short_by: int = 0  # bytes that are left out of an answer that looks whole
    delay: float = 0  # seconds before anything else


@dataclass
class Seen:
    """A request, and what was done with it."""

    method: str
    range: str
    query: str
    at: float
    conditions: str


@dataclass
class FlakyProxy:
    """``url`` is Azurite's as seen through the proxy; ``faults`` strike in their order."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, where: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.where in where:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def flaky_proxy(upstream: str, certificates: Path) -> Iterator[FlakyProxy]:
    """Stand between a client and ``upstream``, with the certificate of the local Azure."""
    target = urlsplit(upstream)
    trust = ssl.create_default_context(cafile=str(certificates / "authority.pem"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def log_message(self, *_: Any) -> None:
            pass

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            span = self.headers.get("x-ms-range") or self.headers.get("Range") or ""
            query = urlsplit(self.path).query
            with proxy.lock:
                proxy.seen.append(Seen(self.command, span, query, time.monotonic(), self.headers.get("If-Match", "")))
                proxy.at_once += 1
                proxy.most_at_once = max(proxy.most_at_once, proxy.at_once)
            fault = proxy.take(self.command, f"{span} {query}") or Fault()
            answer = self._answer(fault, body)
            with proxy.lock:
                proxy.at_once -= 1  # before the client can know of it
            if answer is None:
                self.close_connection = True
                return
            with suppress(OSError):  # the client has gone
                self._send(*answer, fault.cut_after)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

        def _answer(self, fault: Fault, body: bytes) -> tuple[int, dict[str, str], bytes] | None:
            """Status, headers and body; None for a connection that breaks."""
            time.sleep(fault.delay)
            if fault.drop:
                return None
            if fault.status:
                return fault.status, {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}, b""
            connection = http.client.HTTPSConnection(target.hostname or "", target.port, context=trust, timeout=30)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            if fault.lose_answer:
                return None
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
            return answer.status, headers, content[: len(content) - fault.short_by]

        def _send(self, status: int, headers: dict[str, str], content: bytes, cut_after: int | None) -> None:
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:cut_after])
            if cut_after is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    server.socket = own.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    proxy = FlakyProxy(f"https://127.0.0.1:{server.server_address[1]}{target.path}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
