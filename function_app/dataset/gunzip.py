"""A .gz file unpacked as it comes: any number of members, in constant memory, whatever it unpacks to."""

import zlib
from collections.abc import Iterable, Iterator

PIECE = 1 << 20  # bytes of one piece of output at most
SLICE = 1 << 13  # bytes of input at once: at a member's end zlib copies what is left of them
_GZIP = 16 + zlib.MAX_WBITS  # zlib reads a gzip header, and checks CRC and length at the end


class BrokenGzip(Exception):
    """The .gz file cannot be unpacked: ``message`` says what was found, ``fix`` what to do."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message} {fix}")
        self.message = message
        self.fix = fix


def gunzip(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """The unpacked bytes of a gzip file, in pieces of at most 1 MiB. Zeros after the last member are accepted.

    Raises BrokenGzip, after the pieces before the place, when the file is cut off, damaged, no gzip, followed by
    something else, or unpacks to more than ``limit`` bytes.
    """
    gathered = bytearray()  # of members that are small
    try:
        for piece in _pieces(chunks, limit):
            if gathered and len(gathered) + len(piece) > PIECE:
                yield bytes(gathered)
                gathered.clear()
            gathered += piece
    except BrokenGzip:
        if gathered:
            yield bytes(gathered)
        raise
    if gathered:
        yield bytes(gathered)


def _pieces(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    member = zlib.decompressobj(_GZIP)
    begun, began_at, members, read, unpacked = False, 0, 0, 0, 0
    for chunk in _slices(chunks):
        rest = chunk
        while rest:
            if not begun:
                if members:  # padding to a whole number of disk blocks
                    rest = rest.lstrip(b"\0")
                    if not rest:
                        break
                begun, began_at = True, read + len(chunk) - len(rest)
            try:
                piece = member.decompress(rest, PIECE)
            except zlib.error as error:
                raise _broken(error, members, began_at, read + len(chunk) - len(rest)) from None
            unpacked += len(piece)
            if unpacked > limit:
                raise BrokenGzip(
                    f"The file unpacks to more than {_size(limit)}.", "Split it, or leave out what is not needed."
                )
            if piece:
                yield piece
            if member.eof:
                rest = member.unused_data
                member, begun, members = zlib.decompressobj(_GZIP), False, members + 1
            else:
                # Output that zlib holds back when all input is used comes with the next: the trailer at the latest.
                rest = member.unconsumed_tail
        read += len(chunk)
        if read > limit:  # of members that hold nothing
            raise BrokenGzip(f"The packed file has more than {_size(limit)}.", "Split it.")
    if begun:
        raise BrokenGzip(
            f"The file ends in the middle: after {read:,} bytes its gzip stream is not complete.",
            "Upload it again, whole.",
        )
    if not members:
        raise BrokenGzip("The file is empty; it holds no gzip stream.", "Compress the .jsonl file again, with gzip.")


def _slices(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), SLICE):
            yield chunk[start : start + SLICE]


def _broken(error: zlib.error, members: int, began_at: int, position: int) -> BrokenGzip:
    """What zlib's refusal means: of the member that began at byte ``began_at``, somewhere after ``position``."""
    reason = str(error).rpartition(": ")[2]
    foreign = reason == "incorrect header check"
    if foreign and members:
        return BrokenGzip(
            f"After {began_at:,} bytes the gzip stream ends, and what follows is no gzip.",
            "Upload it again, without what was appended; to join files, compress each of them.",
        )
    if foreign:
        return BrokenGzip(
            "The file's name ends in .gz, but it is not compressed with gzip.",
            "Name it .jsonl if it is plain text, or compress it with gzip.",
        )
    checks = {"incorrect data check": "its checksum does not fit", "incorrect length check": "its length does not fit"}
    return BrokenGzip(
        f"The file is damaged: {checks.get(reason, reason)} (somewhere after {position:,} bytes).",
        "Compress it again and upload it again; try `gzip -t` on it first.",
    )


def _size(count: int) -> str:
    return f"{count / (1 << 30):.3g} GiB" if count >= 1 << 30 else f"{count:,} bytes"
