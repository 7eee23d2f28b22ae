"""The records of a local file, whatever its format, one after the other in constant memory."""

import csv
import gzip
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from training import FineTuneError
from training.convert import LeftOut

Records = Iterator[Any]  # mappings of columns, or a LeftOut where there should be one

_CHUNK = 2**20  # characters
_LONGEST_RECORD = 32 * 2**20  # characters of one record of a JSON array
_GAP = re.compile(r"[\s,]*")


def is_file_name(name: str) -> bool:
    """Return whether this is meant as a file or folder, whether or not it is there."""
    return name.startswith((".", "/", "~")) or _suffix(Path(name)) in _READERS or Path(name).suffix in _REFUSED


def read_file(path: Path, split: str | None) -> Records:
    """Return the records of the file, or of the part of it that ``split`` names (``[:100]``, ``train[:1%]``).

    Raises FineTuneError, also while the records are read, if it is no file of a known format, or a damaged one.
    """
    read = _READERS.get(_suffix(path))
    if read is None:
        hint = _REFUSED.get(path.suffix, "expected .jsonl, .json, .csv, .tsv, .txt (each also .gz), .parquet or .arrow")
        raise FineTuneError(f"{path.name} cannot be read: {hint}")
    records = _told(path, read)
    if not split:
        return records()
    from datasets import ReadInstruction

    spec = f"train{split}" if split.startswith("[") else split
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute({"train": sum(1 for _ in records())})
    except (ValueError, AssertionError) as error:
        raise FineTuneError(
            f"the split {split!r} cannot be taken of a file: {error} A file is the split 'train': "
            "'train[:1%]' is its first hundredth, 'train[:10]' its first ten records"
        ) from error
    return itertools.chain.from_iterable(itertools.islice(records(), part.from_, part.to) for part in parts)


def _told(path: Path, read: Callable[[Path], Records]) -> Callable[[], Records]:
    """Return a function that reads ``path``, with what can be wrong with it told in a sentence."""
    import pyarrow

    def records() -> Records:
        try:
            yield from read(path)
        except UnicodeDecodeError as error:
            # What spreadsheets call Unicode text begins with UTF-16's byte-order mark.
            encoding = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
            raise FineTuneError(
                f"{path.name} is not UTF-8 text (byte {error.start}); save it as UTF-8, or convert it with "
                f"`iconv -f {encoding} -t UTF-8`"
            ) from error
        except (EOFError, gzip.BadGzipFile) as error:
            raise FineTuneError(
                f"{path.name} is damaged or not complete: {error}; copy or download it again"
            ) from error
        except pyarrow.ArrowException as error:
            reason = " ".join(str(error).split())[:200]
            raise FineTuneError(f"{path.name} is not a file of its kind, or damaged: {reason}") from error
        except OSError as error:
            raise FineTuneError(f"cannot read {path.name}: {error.strerror or error}") from error

    return records


def _suffix(path: Path) -> str:
    """Return the suffix that tells the format, with that of what is inside for ``.gz``."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() + suffix if suffix == ".gz" else suffix


def _open(path: Path) -> io.TextIOBase:
    # newline="": a row of a CSV file may hold line breaks, and so may a JSON text hold U+2028, which is none.
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")  # type: ignore[return-value]
    return path.open(encoding="utf-8-sig", newline="")


def _json(path: Path) -> Records:
    """JSON Lines or one JSON array: what it begins with tells, not the name."""
    with _open(path) as text:
        beginning = text.read(_CHUNK).lstrip()
    is_array = beginning.startswith("[")
    if not is_array and beginning.partition("\n")[0].strip() == "{":
        raise FineTuneError(
            f"{path.name} is a JSON object over many lines, not a list of records; write a record on each line: "
            f"`jq -c . {path.name} > lines.jsonl`, or `jq -c '.data[]' {path.name} > lines.jsonl` when the records are "
            "a list in its key data"
        )
    with _open(path) as text:
        yield from _array(path, text) if is_array else _lines(text)


def _lines(text: io.TextIOBase) -> Records:
    for line in text:
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            yield LeftOut("a line that is not one JSON object")


def _array(path: Path, text: io.TextIOBase) -> Records:
    decoder = json.JSONDecoder()
    buffer = text.read(_CHUNK)
    at, size = buffer.index("[") + 1, _CHUNK
    while True:
        at = _GAP.match(buffer, at).end()  # type: ignore[union-attr]
        if buffer.startswith("]", at):
            return
        try:
            record, at = decoder.raw_decode(buffer, at)
            size = _CHUNK
        except (json.JSONDecodeError, RecursionError) as error:
            # Most likely the record goes on behind what was read; twice as much each time, or it would take for ever.
            more = text.read(size)
            buffer, at, size = buffer[at:] + more, 0, size * 2
            if not more or len(buffer) > _LONGEST_RECORD:
                raise FineTuneError(f"{path.name} is not a complete JSON array; export it again") from error
            continue
        yield record


def _table(path: Path) -> Records:
    csv.field_size_limit(_LONGEST_RECORD)
    with _open(path) as text:
        first = text.readline()
    # A spreadsheet writes semicolons where the comma is the decimal sign.
    separator = "\t" if ".tsv" in path.suffixes else max(",;\t", key=first.count)
    with _open(path) as text:
        # strict: otherwise a quotation mark that is never closed makes one record of all rows behind it, unnoticed.
        rows = csv.DictReader(text, delimiter=separator, strict=True)
        try:
            rows.fieldnames = [name.strip() for name in rows.fieldnames or []]
            for row in rows:
                yield LeftOut("a row with more cells than the header") if None in row else row
        except csv.Error as error:
            raise FineTuneError(
                f"{path.name} is not a well-formed table, in the row that ends at line {rows.reader.line_num}: {error}"
                "; a cell that begins with a quotation mark must end with one, and those inside it are written twice"
            ) from error


def _text(path: Path) -> Records:
    with _open(path) as text:
        for line in text:
            yield {"text": line.rstrip("\r\n")}


def _parquet(path: Path) -> Records:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(1000):
            yield from batch.to_pylist()


def _arrow(path: Path) -> Records:
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as source:
        file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = ipc.open_file(source) if file else ipc.open_stream(source)
        batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if file else iter(reader)
        for batch in batches:
            yield from batch.to_pylist()


_TEXTS = {".jsonl": _json, ".json": _json, ".ndjson": _json, ".csv": _table, ".tsv": _table, ".txt": _text}
_READERS = {**_TEXTS, **{f"{suffix}.gz": read for suffix, read in _TEXTS.items()}}
_READERS |= {".parquet": _parquet, ".arrow": _arrow}
_REFUSED = {
    ".zip": "it is an archive; unpack it and name the file in it",
    ".xlsx": "it is an Excel workbook; save the sheet as CSV (UTF-8) in Excel",
    ".xls": "it is an Excel workbook; save the sheet as CSV (UTF-8) in Excel",
}
