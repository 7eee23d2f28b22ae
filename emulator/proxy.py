"""An HTTPS proxy by which the storage account's real host name leads to Azurite; all else passes through.

azure-ai-ml makes ``https://<account>.blob.<suffix>`` of a datastore, whatever it was told of the storage. A shell that
uses this proxy (``HTTPS_PROXY``) can therefore upload job inputs, data and models, and download outputs, unchanged.
"""

import asyncio
import base64
import contextlib
import logging
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from .config import HOST

log = logging.getLogger("emulator.proxy")
CHUNK = 64 * 1024  # bytes
MAX_HEAD = 16 * 1024  # bytes of a CONNECT request
CONNECT_LIMIT = 30.0  # seconds


class Proxy:
    """Answers CONNECT. ``hosts`` maps host names to local ports; others go on to ``upstream``, or straight out."""

    def __init__(self, hosts: Mapping[str, int], upstream: str = "") -> None:
        self._hosts = hosts
        self._upstream = urlsplit(upstream) if upstream else None
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, port, limit=MAX_HEAD)

    async def close(self) -> None:
        """Take no more connections; those there are end with the event loop."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._tunnel(reader, writer)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.info("proxy broke_off=%s", type(error).__name__)
        finally:
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), CONNECT_LIMIT)
        method, target = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
        if method != "CONNECT":
            writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\nContent-Length: 0\r\n\r\n")
            return await writer.drain()
        host, _, port = target.rpartition(":")
        try:
            up_reader, up_writer = await asyncio.wait_for(self._connect(host.strip("[]"), int(port)), CONNECT_LIMIT)
        except (OSError, TimeoutError) as error:
            log.info("proxy host=%s unreachable=%s", host, type(error).__name__)
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return await writer.drain()
        writer.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        await writer.drain()
        try:
            await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
        finally:
            up_writer.close()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if local := self._hosts.get(host.lower()):
            return await asyncio.open_connection(HOST, local)
        if self._upstream is None:
            return await asyncio.open_connection(host, port)
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port or 80)
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{self._authorization()}\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if answer.split(b" ", 2)[1] != b"200":
            writer.close()
            raise ConnectionRefusedError
        return reader, writer

    def _authorization(self) -> str:
        if self._upstream is None or not self._upstream.username:
            return ""
        secret = f"{unquote(self._upstream.username)}:{unquote(self._upstream.password or '')}"
        return f"Proxy-Authorization: Basic {base64.b64encode(secret.encode()).decode()}\r\n"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the sender ends, then end the other side's input, as a socket would."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
