"""Reading in ranges and writing in blocks, against Azurite, with a proxy in between that breaks what it is told to."""

import threading
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from azure.storage.blob import BlobClient, BlobServiceClient

from function_app import blob_ranges, blob_retries
from function_app.blob_ranges import LARGE, Replaced, large_file_slot, read_ranges
from function_app.block_writer import BlockWriter
from function_app.errors import TransientError
from tests.flaky_proxy import Fault, FlakyProxy, flaky_proxy
from tests.local_azure import LocalAzure

KIB = 1 << 10
CONTENT = b"".join(sha256(bytes([number % 256, number >> 8])).digest() for number in range(3200))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_retries, "FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def line(azure: LocalAzure) -> Iterator[tuple[FlakyProxy, BlobServiceClient]]:
    """The proxy, and a client that talks through it."""
    with (
        flaky_proxy(azure.environment["Storage__blobServiceUri"], azure.home / "certificates") as proxy,
        BlobServiceClient(proxy.url, credential=DefaultAzureCredential()) as service,
    ):
        yield proxy, service


@pytest.fixture
def proxy(line: tuple[FlakyProxy, BlobServiceClient]) -> FlakyProxy:
    line[0].faults.clear()
    line[0].seen.clear()
    line[0].most_at_once = 0
    return line[0]


@pytest.fixture
def blob(line: tuple[FlakyProxy, BlobServiceClient], proxy: FlakyProxy, request: pytest.FixtureRequest) -> BlobClient:
    return line[1].get_blob_client("datasets", f"io/{request.node.name}.bin")


@pytest.fixture
def dropped(blob: BlobClient, proxy: FlakyProxy, azure: LocalAzure) -> tuple[BlobClient, str]:
    """CONTENT as a blob, and its ETag."""
    return blob, azure.drop(blob.blob_name, CONTENT)


def read(dropped: tuple[BlobClient, str], **more: Any) -> Iterator[bytes]:
    return read_ranges(*dropped, len(CONTENT), **{"range_bytes": 16 * KIB, "ahead": 3, **more})


def threads(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_ranges_come_in_order_several_at_once_and_each_once(dropped: tuple[BlobClient, str], proxy: FlakyProxy) -> None:
    proxy.faults = [Fault(delay=0.2), Fault(delay=0.1), Fault(delay=0.1)]
    pieces = list(read(dropped))
    assert b"".join(pieces) == CONTENT
    assert [len(piece) for piece in pieces] == [16 * KIB] * 6 + [4 * KIB]
    starts = [f"bytes={start}-{min(start + 16 * KIB, len(CONTENT)) - 1}" for start in range(0, len(CONTENT), 16 * KIB)]
    assert sorted(seen.range for seen in proxy.seen) == sorted(starts)
    assert {seen.conditions for seen in proxy.seen} == {f'"{dropped[1]}"'}
    assert proxy.most_at_once == 3
    assert not threads("ranges")


def test_no_more_is_asked_for_than_may_be_held(dropped: tuple[BlobClient, str], proxy: FlakyProxy) -> None:
    pieces = read(dropped, ahead=2)
    next(pieces)
    for thread in threading.enumerate():
        if thread.name.startswith("ranges"):
            thread.join(0.2)  # all that was asked for has come by then; the pool's threads themselves stay
    assert len(proxy.seen) == 3  # one in the caller's hands, two ahead
    pieces.close()  # type: ignore[attr-defined]
    assert len(proxy.seen) == 3
    assert not threads("ranges")


def test_a_small_file_is_one_request_without_a_thread(dropped: tuple[BlobClient, str], proxy: FlakyProxy) -> None:
    pieces = read(dropped, range_bytes=len(CONTENT))
    assert next(pieces) == CONTENT
    assert not threads("ranges")
    assert list(pieces) == []
    assert len(proxy.seen) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(where="bytes=32768-", cut_after=5000),
        Fault(where="bytes=32768-", status=503),
        Fault(where="bytes=32768-", status=500, times=3),
        Fault(where="bytes=32768-", drop=True, times=2),
        Fault(where="bytes=32768-", delay=1),
    ],
    ids=["cut", "503", "500 thrice", "reset twice", "silent"],
)
def test_a_range_that_fails_is_asked_for_again_and_no_other(
    dropped: tuple[BlobClient, str], proxy: FlakyProxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_ranges, "ONCE", {**blob_retries.ONCE, "read_timeout": 0.5})
    failures, proxy.faults = fault.times, [fault]
    assert b"".join(read(dropped)) == CONTENT
    asked = [seen.range for seen in proxy.seen]
    assert asked.count("bytes=32768-49151") == 1 + failures
    assert len(asked) == 7 + failures


def test_an_answer_that_is_too_short_is_noticed(dropped: tuple[BlobClient, str], proxy: FlakyProxy) -> None:
    proxy.faults = [Fault(where="-49151", short_by=1, times=2)]  # the SDK asks for the last byte, and gets none
    assert b"".join(read(dropped)) == CONTENT
    asked = [seen.range for seen in proxy.seen if seen.range.endswith("-49151")]
    assert asked == ["bytes=32768-49151", "bytes=49151-49151", "bytes=32768-49151"]


def test_retry_after_is_waited_for(dropped: tuple[BlobClient, str], proxy: FlakyProxy) -> None:
    proxy.faults = [Fault(status=503, retry_after=1)]
    assert list(read(dropped, range_bytes=len(CONTENT))) == [CONTENT]
    assert proxy.seen[1].at - proxy.seen[0].at >= 0.95


def test_a_storage_that_stays_away_is_asked_a_few_times_only(
    dropped: tuple[BlobClient, str], proxy: FlakyProxy
) -> None:
    proxy.faults = [Fault(where="bytes=0-", status=503, times=99)]
    with pytest.raises(HttpResponseError) as error:
        list(read(dropped))
    assert error.value.status_code == 503
    assert sum(seen.range.startswith("bytes=0-") for seen in proxy.seen) == blob_retries.ATTEMPTS
    assert not threads("ranges")


def test_a_body_that_always_breaks_off_is_not_repeated_twice_over(
    dropped: tuple[BlobClient, str], proxy: FlakyProxy
) -> None:
    proxy.faults = [Fault(cut_after=10, times=99)]
    with pytest.raises(AzureError):
        list(read(dropped, range_bytes=len(CONTENT)))
    assert len(proxy.seen) == 3  # the SDK's own; see blob_retries.py


def test_a_file_replaced_or_deleted_while_it_is_read_is_noticed(
    dropped: tuple[BlobClient, str], azure: LocalAzure
) -> None:
    pieces = read(dropped, ahead=1)
    next(pieces)
    azure.drop(dropped[0].blob_name, CONTENT)  # the same bytes are another version
    with pytest.raises(Replaced):
        list(pieces)
    dropped[0].delete_blob()
    with pytest.raises(Replaced):
        list(read(dropped))
    assert not threads("ranges")


def test_a_caller_that_stops_early_leaves_nothing_behind(dropped: tuple[BlobClient, str], proxy: FlakyProxy) -> None:
    proxy.faults = [Fault(where="bytes=16384-", status=503, retry_after=20, times=99)]
    pieces = read(dropped, ahead=2)
    assert next(pieces) == CONTENT[: 16 * KIB]
    pieces.close()  # type: ignore[attr-defined]
    assert not threads("ranges")  # also not the one that was to wait 20 seconds
    assert proxy.at_once == 0
    assert len(proxy.seen) <= 3


def test_a_blob_that_says_it_is_gzip_comes_as_it_lies_there(blob: BlobClient) -> None:
    from azure.storage.blob import ContentSettings

    etag = blob.upload_blob(CONTENT, overwrite=True, content_settings=ContentSettings(content_encoding="gzip"))["etag"]
    assert b"".join(read((blob, etag.strip('"')))) == CONTENT


def test_an_empty_file_is_no_request(blob: BlobClient, proxy: FlakyProxy) -> None:
    assert list(read_ranges(blob, "0x1", 0)) == []
    assert not proxy.seen


def test_two_large_files_are_read_at_once_and_a_third_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_ranges, "SLOT_WAIT", 0.01)
    with large_file_slot(LARGE + 1), large_file_slot(LARGE + 1):
        with large_file_slot(LARGE):
            pass
        with pytest.raises(TransientError), large_file_slot(LARGE + 1):
            pass
    with large_file_slot(LARGE + 1), large_file_slot(LARGE + 1):
        pass


def write(blob: BlobClient, content: bytes, pieces: int = 7) -> BlockWriter:
    """CONTENT written in odd pieces, not committed."""
    writer = BlockWriter(blob, block_bytes=16 * KIB)
    step = len(content) // pieces + 1
    for start in range(0, len(content), step):
        writer.write(content[start : start + step])
    return writer


def test_blocks_are_sent_while_writing_and_seen_after_the_commit(blob: BlobClient, proxy: FlakyProxy) -> None:
    writer = write(blob, CONTENT)
    assert writer.digest == sha256(CONTENT).hexdigest()
    assert writer.size == len(CONTENT)
    with pytest.raises(ResourceNotFoundError):
        blob.get_blob_properties()
    writer.commit({"records": "12"})
    assert blob.download_blob().readall() == CONTENT
    assert blob.get_blob_properties().metadata == {"records": "12"}
    calls = [seen.query.partition("&")[0] for seen in proxy.seen if seen.method == "PUT"]
    assert calls == ["comp=block"] * 7 + ["comp=blocklist"]
    assert 1 <= proxy.most_at_once <= 2
    assert not threads("blocks")


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_small_content_is_one_request(blob: BlobClient, proxy: FlakyProxy, content: bytes) -> None:
    writer = BlockWriter(blob)
    writer.write(content)
    writer.commit()
    assert [seen.method for seen in proxy.seen] == ["PUT"]
    assert blob.download_blob().readall() == content
    assert writer.digest == sha256(content).hexdigest()


def test_writing_again_replaces_the_whole_blob(blob: BlobClient) -> None:
    write(blob, CONTENT).commit()
    write(blob, CONTENT[: 40 * KIB]).commit()
    assert blob.download_blob().readall() == CONTENT[: 40 * KIB]
    write(blob, b"small").commit()
    assert blob.download_blob().readall() == b"small"


def test_what_is_discarded_was_never_there(blob: BlobClient) -> None:
    with BlockWriter(blob, block_bytes=KIB) as writer:
        writer.write(CONTENT)
    with pytest.raises(ResourceNotFoundError):
        blob.get_blob_properties()
    assert not threads("blocks")


@pytest.mark.parametrize("where", ["comp=block&", "comp=blocklist"])
@pytest.mark.parametrize(
    "fault", [Fault(status=503), Fault(drop=True), Fault(lose_answer=True)], ids=["503", "reset", "answer lost"]
)
def test_a_failed_request_is_sent_again(blob: BlobClient, proxy: FlakyProxy, fault: Fault, where: str) -> None:
    struck = Fault("PUT", where, status=fault.status, drop=fault.drop, lose_answer=fault.lose_answer)
    proxy.faults = [struck]
    write(blob, CONTENT).commit()
    assert struck.times == 0
    assert blob.download_blob().readall() == CONTENT


def test_an_error_while_sending_surfaces_at_the_next_write_or_commit(blob: BlobClient, proxy: FlakyProxy) -> None:
    proxy.faults = [Fault("PUT", "comp=block&", status=403, times=99)]
    writer = BlockWriter(blob, block_bytes=KIB)
    with pytest.raises(HttpResponseError) as error:
        writer.write(CONTENT)
    assert error.value.status_code == 403
    writer.discard()
    late = BlockWriter(blob, block_bytes=KIB)
    late.write(CONTENT[:KIB])
    with pytest.raises(HttpResponseError):
        late.commit()
    late.discard()
    assert not threads("blocks")


def test_two_writers_of_the_same_content_both_succeed(blob: BlobClient) -> None:
    first, second = write(blob, CONTENT), write(blob, CONTENT[: 90 * KIB])
    second.write(CONTENT[90 * KIB :])
    first.commit()  # Azure now drops all that second has sent
    second.commit()
    assert blob.download_blob().readall() == CONTENT


def test_two_writers_of_different_content_cannot_mix_it(blob: BlobClient) -> None:
    first, second = write(blob, CONTENT), write(blob, CONTENT[::-1])
    first.commit()
    with pytest.raises(TransientError):
        second.commit()
    assert blob.download_blob().readall() == CONTENT
    write(blob, CONTENT[::-1]).commit()
    assert blob.download_blob().readall() == CONTENT[::-1]
