"""gunzip: every gzip file comes out whole, everything else is named, and no bomb fills the memory."""

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_app.dataset.gunzip import PIECE, BrokenGzip, gunzip

TEXT = b"".join(b'{"text": "record number %d"}\n' % number for number in range(1000))
PACKED = gzip.compress(TEXT)
MANY = 1 << 30


def cut(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def unpack(content: bytes, size: int = 1000, limit: int = MANY) -> bytes:
    return b"".join(gunzip(cut(content, size), limit))


@given(
    members=st.lists(st.binary(max_size=3000), min_size=1, max_size=4),
    padding=st.integers(0, 700),
    size=st.integers(1, 999),
)
def test_any_members_cut_anywhere_come_out_whole(members: list[bytes], padding: int, size: int) -> None:
    packed = b"".join(gzip.compress(member) for member in members) + b"\0" * padding
    assert unpack(packed, size) == b"".join(members)


def test_a_header_with_a_name_and_a_comment_is_read() -> None:
    header = b"\x1f\x8b\x08\x18" + bytes(6) + b"dataset.jsonl\0a comment\0"
    deflate = zlib.compressobj(wbits=-15)
    trailer = zlib.crc32(TEXT).to_bytes(4, "little") + len(TEXT).to_bytes(4, "little")
    assert unpack(header + deflate.compress(TEXT) + deflate.flush() + trailer) == TEXT


@pytest.mark.parametrize("kept", [1, 5, 12, len(PACKED) // 2, len(PACKED) - 8, len(PACKED) - 1])
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_file_that_is_cut_off_is_named(kept: int, size: int) -> None:
    with pytest.raises(BrokenGzip, match=f"ends in the middle: after {kept:,} bytes"):
        unpack(PACKED[:kept], size)


def test_a_second_member_that_is_cut_off_is_named() -> None:
    with pytest.raises(BrokenGzip, match="ends in the middle"):
        unpack(PACKED + PACKED[:40])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "damaged: its checksum does not fit"),
        (PACKED[:-4] + b"\1\0\0\0", "damaged: its length does not fit"),
        (PACKED[:20] + bytes(200) + PACKED[220:], "damaged"),
        (TEXT, "not compressed with gzip"),
        (b"PK\3\4" + TEXT, "not compressed with gzip"),
        (b"\0" * 600, "not compressed with gzip"),
        (PACKED + TEXT, f"After {len(PACKED):,} bytes the gzip stream ends, and what follows is no gzip"),
        (PACKED + b"\0\0\0x" + PACKED, f"After {len(PACKED) + 3:,} bytes the gzip stream ends"),
        (b"", "empty"),
    ],
)
@pytest.mark.parametrize("size", [1, 100_000])
def test_what_is_wrong_is_named_with_a_fix(content: bytes, message: str, size: int) -> None:
    with pytest.raises(BrokenGzip, match=message) as error:
        unpack(content, size)
    assert error.value.message
    assert error.value.fix


@given(st.binary(max_size=300), st.integers(0, len(PACKED)), st.integers(1, 500))
def test_any_bytes_end_in_bytes_or_in_the_one_error(content: bytes, kept: int, size: int) -> None:
    try:
        unpack(PACKED[:kept] + content, size)
    except BrokenGzip as error:
        assert error.fix


def test_the_limit_is_exact() -> None:
    assert unpack(PACKED, limit=len(TEXT)) == TEXT
    with pytest.raises(BrokenGzip, match=r"unpacks to more than"):
        unpack(PACKED, limit=len(TEXT) - 1)


def test_a_bomb_is_unpacked_in_small_pieces_and_constant_memory() -> None:
    once = zlib.compressobj(wbits=31)
    bomb = b"".join(once.compress(bytes(PIECE)) for _ in range(200)) + once.flush()
    assert len(bomb) < 300_000
    tracemalloc.start()
    sizes = [len(piece) for piece in gunzip([bomb], MANY)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 200 * PIECE
    assert max(sizes) <= PIECE
    assert peak < 6 * PIECE
    with pytest.raises(BrokenGzip, match="unpacks to more than"):
        list(gunzip([bomb], 10 * PIECE))
