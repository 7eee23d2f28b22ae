"""A blob written in blocks while its content is still being made; nothing of it is visible before the commit."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Self

from azure.core.exceptions import HttpResponseError

from .blob_retries import ONCE, retrying
from .errors import TransientError

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

MIB = 1 << 20
IN_FLIGHT = 2


class BlockWriter:
    """Writes one blob. Use it in a ``with`` block: what was not committed by its end is discarded.

    A block's id is made of its number and the digest of everything up to its end. So a block that is sent twice is
    the same block, and of two writers that write the same at the same time each may commit the blocks of the other:
    Azure drops the blocks that are not committed yet when anybody commits the blob.
    """

    def __init__(self, blob: "BlobClient", *, block_bytes: int = 4 * MIB) -> None:
        self.size = 0  # bytes written so far
        self._blob = blob
        self._block_bytes = block_bytes
        self._digest = sha256()
        self._parts: list[bytes] = []  # of the block that is being filled
        self._filled = 0
        self._ids: list[str] = []
        self._sending: deque[Future[None]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._stop = Event()

    @property
    def digest(self) -> str:
        """The SHA-256 of what was written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, content: bytes) -> None:
        """Append ``content``. Waits while two blocks are under way; raises the Azure error of an earlier block."""
        self._settle(IN_FLIGHT)
        view = memoryview(content)
        while view:
            part = view[: self._block_bytes - self._filled]
            self._digest.update(part)
            # Whole contents are kept as they are; a part is copied, so that it does not keep the rest alive.
            self._parts.append(content if len(part) == len(content) else bytes(part))
            self._filled += len(part)
            self.size += len(part)
            view = view[len(part) :]
            if self._filled == self._block_bytes:
                self._stage()

    def commit(self, metadata: Mapping[str, str] | None = None) -> None:
        """Make the blob what was written, at once, whatever it was before.

        Raises the Azure error that is left when repeating did not help, and TransientError when something else was
        written to the blob at the same time.
        """
        known = dict(metadata) if metadata else None
        if not self._ids:
            body = b"".join(self._parts)
            retrying(lambda: self._blob.upload_blob(body, overwrite=True, metadata=known, **ONCE), self._stop)
        else:
            if self._parts:
                self._stage()
            self._settle(0)
            from azure.storage.blob import BlobBlock

            blocks = [BlobBlock(id) for id in self._ids]
            try:
                retrying(lambda: self._blob.commit_block_list(blocks, metadata=known, **ONCE), self._stop)
            except HttpResponseError as error:
                if getattr(error, "error_code", "") != "InvalidBlockList":
                    raise
                raise TransientError(f"{self._blob.blob_name} was written by something else too") from error
        self.discard()

    def discard(self) -> None:
        """Forget what was not committed. Azure drops blocks that nobody commits after a week."""
        self._stop.set()
        self._parts.clear()
        self._sending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _stage(self) -> None:
        """Send the block that is being filled."""
        block = b"".join(self._parts)
        self._parts.clear()
        self._filled = 0
        # Always 51 characters: Azure wants the ids of a blob's blocks to be of one length.
        id = f"{len(self._ids):010d}-{self.digest[:40]}"
        self._ids.append(id)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="blocks")
        self._settle(IN_FLIGHT - 1)
        self._sending.append(self._pool.submit(self._send, id, block))

    def _settle(self, left: int) -> None:
        """Wait until at most ``left`` blocks are under way; raise the error of one that has failed."""
        while self._sending and (len(self._sending) > left or self._sending[0].done()):
            self._sending.popleft().result()

    def _send(self, id: str, block: bytes) -> None:
        retrying(lambda: self._blob.stage_block(id, block, length=len(block), **ONCE), self._stop)
