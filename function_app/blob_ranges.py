"""A blob read in ranges, several at once, so that the download goes on while the caller works on what has come."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import BoundedSemaphore, Event
from typing import TYPE_CHECKING

from azure.core import MatchConditions
from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

from .blob_retries import ONCE, ShortAnswer, retrying
from .errors import TransientError

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

MIB = 1 << 20
LARGE = 32 * MIB  # a file beyond this fills all the buffers that reading it may have
# An instance takes up to 24 invocations at once; so many large files' buffers would not fit its memory.
LARGE_AT_ONCE = 2
SLOT_WAIT = 240.0  # seconds, well within host.json's functionTimeout, which would kill everything else in the process

_large_files = BoundedSemaphore(LARGE_AT_ONCE)


class Replaced(Exception):
    """The file was overwritten or deleted while it was read; its next version has a run of its own."""


def read_ranges(
    blob: "BlobClient", etag: str, size: int, *, range_bytes: int = 4 * MIB, ahead: int = 4
) -> Generator[bytes]:
    """The ``size`` bytes of the version ``etag`` (without quotes) of a blob, in order, in pieces of ``range_bytes``.

    At most ``ahead`` pieces are held, or under way, beside the one that the caller has. A range that fails is asked for
    again by itself. To stop early, close the iterator: what is queued is dropped, and once the requests that are under
    way have ended no thread is left.

    Raises Replaced when the blob has another version or is gone, and the Azure error that repeating did not help with.
    """
    stop = Event()
    if size <= range_bytes:
        if size:
            yield _range(blob, etag, 0, size, stop)
        return
    starts = iter(range(0, size, range_bytes))
    coming: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="ranges")

    def fill() -> None:
        while len(coming) < ahead and (start := next(starts, None)) is not None:
            coming.append(pool.submit(_range, blob, etag, start, min(range_bytes, size - start), stop))

    try:
        fill()
        while coming:
            # Popped in the same expression: a name for the piece or its future would keep it while the next one comes.
            yield _taken(coming, fill)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _taken(coming: deque[Future[bytes]], fill: Callable[[], None]) -> bytes:
    piece = coming.popleft().result()
    fill()
    return piece


def _range(blob: "BlobClient", etag: str, start: int, length: int, stop: Event) -> bytes:
    def request() -> bytes:
        stream = blob.download_blob(
            offset=start,
            length=length,
            max_concurrency=1,
            etag=f'"{etag}"',
            match_condition=MatchConditions.IfNotModified,
            # A blob that says Content-Encoding: gzip would be unpacked range by range, which cannot work.
            decompress=False,
            **ONCE,
        )
        # The whole range has been read by now. chunks() hands it over, readall() would copy it.
        content = b"".join(stream.chunks())
        if len(content) != length:
            raise ShortAnswer(f"{blob.blob_name}: {len(content)} bytes came of the {length} from {start} on")
        return content

    try:
        return retrying(request, stop)
    except (ResourceModifiedError, ResourceNotFoundError):
        raise Replaced(blob.blob_name) from None


@contextmanager
def large_file_slot(size: int) -> Iterator[None]:
    """Hold one of the process's places for reading a file of ``size`` bytes; a file that is not large needs none.

    Raises TransientError when no place has become free in four minutes.
    """
    if size <= LARGE:
        yield
        return
    if not _large_files.acquire(timeout=SLOT_WAIT):
        raise TransientError("other large files are being read; this one waits for its turn")
    try:
        yield
    finally:
        _large_files.release()
