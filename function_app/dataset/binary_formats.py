"""Files that are no text, told by their first bytes."""

import re
from pathlib import PurePosixPath

from .foreign import SHAPE, Foreign, prepare, prepare_named

UNPACK = (
    "Unpack it and drop the .jsonl file that is in it; `gzip -k train.jsonl` makes the one packed form that is read."
)
TO_JSONL = "Write the examples to a .jsonl file with the program that made it. " + SHAPE
TEXT_ONLY = "Models are trained on text here: write the examples to a .jsonl file. " + SHAPE
SPREADSHEET = "In the spreadsheet program save it as CSV UTF-8 (comma delimited). "
WORD = "Copy its text into a plain .txt file (in Word: Save as, Plain text, UTF-8). "
PANDAS = (
    "In Python: `df.to_json('out.jsonl', orient='records', lines=True, force_ascii=False)` on the table that it holds."
)

# (the first bytes as a pattern, what it is, the fix; an ending in place of the fix: prepare_dataset reads it so named)
MAGICS: list[tuple[re.Pattern[bytes], str, str]] = [
    (re.compile(pattern, re.DOTALL), what, fix)
    for pattern, what, fix in [
        (rb"PAR[1E][^\w ]", "a Parquet file", ".parquet"),
        (rb"ARROW1\0|FEA1|\xff\xff\xff\xff[^\xff]..\0", "an Arrow (Feather) file", ".arrow"),
        (rb"ORC[\0-\x1f\x80-\xff]", "an ORC file", PANDAS),
        (rb"Obj\x01", "an Avro file", TO_JSONL),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", PANDAS),
        (rb"SQLite format 3\0", "an SQLite database", PANDAS),
        (rb".{8}DUCK.\0\0\0", "a DuckDB database", PANDAS),
        (rb"\x80[\x02-\x05][\x00-\x1f\x80-\xff\]}(cKXGN.]", "a Python pickle (or an old PyTorch file)", TO_JSONL),
        (rb"\x93NUMPY", "a NumPy array", TO_JSONL),
        (rb'.{4}\0\0\0\0\{["}]', "a safetensors file: a model's weights, not examples", TO_JSONL),
        (rb"GGUF[\0-\x1f]", "a GGUF file: a model's weights, not examples", TO_JSONL),
        (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "a bzip2 file", UNPACK),
        (rb"\xfd7zXZ\0", "an xz file", UNPACK),
        (rb"[\x25-\x28]\xb5\x2f\xfd", "a Zstandard file", UNPACK),
        (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
        (rb"Rar!\x1a\x07", "a RAR archive", UNPACK),
        (rb"\x04\x22\x4d\x18", "an LZ4 file", UNPACK),
        (rb"\x1f[\x9d\xa0]", "a .Z file", UNPACK),
        (rb".{257}ustar(\0| {2}\0)", "a tar archive", UNPACK),
        (rb"%PDF-", "a PDF", WORD + prepare("in.txt")),
        (rb"\{\\rtf", "a rich text (RTF) document", WORD + prepare("in.txt")),
        (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0\0\0\0", "an image", TEXT_ONLY),
        (rb"RIFF.{4}WAVE|ID3[\x02-\x04]|OggS\0|fLaC|\0\0\0.ftyp", "a sound or a film", TEXT_ONLY),
        (
            rb"\0\x05\x16\x07",
            "the companion file that a Mac writes beside each file (its name begins with ._)",
            "Drop the file of that name without ._ instead.",
        ),
    ]
]

# (a member's name as a pattern, what the zip is, the fix), the first that fits
ZIPS: list[tuple[re.Pattern[bytes], str, str]] = [
    (re.compile(pattern), what, fix)
    for pattern, what, fix in [
        (rb"xl/", "an Excel workbook (.xlsx)", SPREADSHEET + prepare("in.csv")),
        (rb"word/", "a Word document (.docx)", WORD + prepare("in.txt")),
        (rb"ppt/", "a PowerPoint presentation (.pptx)", WORD + prepare("in.txt")),
        (rb"(.*/)?data\.pkl$", "a PyTorch file: a model's weights, not examples", TO_JSONL),
        (rb"(arr_\d+|.*)\.npy$", "a NumPy archive (.npz)", TO_JSONL),
        (rb"Index/|.*\.iwa$", "an Apple Numbers or Pages document", "Export it as CSV. " + prepare("in.csv")),
        (rb"content\.xml$|mimetype$", "an OpenDocument file", SPREADSHEET + prepare("in.csv")),
    ]
]
OFFICE = {".xlsx": 0, ".xlsm": 0, ".docx": 1, ".pptx": 2}  # a workbook's first members may be anyone's
_LOCAL_HEADER = 30  # bytes before a member's name in a zip


def foreign_binary(head: bytes, name: str) -> Foreign | None:
    """What a file is that begins with ``head`` and is no text; None for what may be text. Says nothing of gzip."""
    if not head.strip(b"\0"):
        return Foreign(
            "not_json_lines",
            "The file is filled with zero bytes: it was reserved, and its content never arrived.",
            "Copy or export it again, and wait until synchronising (OneDrive, a network drive) has ended.",
            0,
        )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return _zip(head, name)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _ole(head, name)
    for pattern, what, fix in MAGICS:
        if pattern.match(head):
            return _is(what, prepare_named(name, fix) if fix.startswith(".") else fix)
    return None


def unknown_binary(head: bytes) -> Foreign | None:
    """The answer for bytes that no text has, in a file of no known kind."""
    start = head[:1024]
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b\x1e" for byte in start)
    if controls * 20 <= len(start):
        return None
    return _is("binary, of a kind that is not known here", TO_JSONL)


def _is(what: str, fix: str) -> Foreign:
    return Foreign("not_json_lines", f"This is {what}, not JSON Lines.", fix, 0)


def _zip(head: bytes, name: str) -> Foreign:
    members: list[bytes] = []
    at = head.find(b"PK\x03\x04")
    while at >= 0 and len(members) < 1000:
        length = int.from_bytes(head[at + 26 : at + 28], "little")
        members.append(head[at + _LOCAL_HEADER : at + _LOCAL_HEADER + length])
        at = head.find(b"PK\x03\x04", at + _LOCAL_HEADER)
    for pattern, what, fix in ZIPS:
        if any(pattern.match(member) for member in members):
            return _is(what, fix)
    if b"[Content_Types].xml" in members:
        kind = OFFICE.get(PurePosixPath(name).suffix.lower(), 0)
        return _is("a Microsoft Office document" if not kind else ZIPS[kind][1], ZIPS[kind][2])
    return _is("a zip archive", UNPACK)


def _ole(head: bytes, name: str) -> Foreign:
    """Office documents until 2003, and encrypted ones of today."""
    if "EncryptedPackage".encode("utf-16-le") in head:
        return _is("an Office document with a password", "Take the password off, and save it as CSV or plain text.")
    if PurePosixPath(name).suffix.lower() == ".doc" or "WordDocument".encode("utf-16-le") in head:
        return _is("an old Word document (.doc)", WORD + prepare("in.txt"))
    if PurePosixPath(name).suffix.lower() == ".msg":
        return _is("an Outlook message", WORD + prepare("in.txt"))
    return _is("an old Excel workbook (.xls)", SPREADSHEET + prepare("in.csv"))
