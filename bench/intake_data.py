"""The files of bench/intake.py: real chats, repeated until they are large enough, each repetition different.

Repeated word for word, 99 records of 100 are duplicates. Here each repetition has the letters of its texts exchanged by
a permutation of its own: lengths, words, escapes and JSON stay as they are, and nothing is a duplicate.

Run as: python -m bench.intake_data chats|long|verbatim BYTES > FILE
"""

import json
import random
import string
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

LONG = 5_000  # bytes of a long record, about
LETTERS = string.ascii_lowercase

Texts = list[tuple[str, str]]


def source() -> Path:
    """codegen-train.jsonl, beside the checkout. Raises FileNotFoundError with what to do."""
    for folder in Path(__file__).resolve().parents:
        path = folder / "shared" / "data" / "codegen-train.jsonl"
        if path.exists():
            return path
    raise FileNotFoundError("shared/data/codegen-train.jsonl is not beside this checkout; the benchmark needs it")


def verbatim() -> Iterator[bytes]:
    """The file as it is, again and again."""
    content = source().read_bytes()
    while True:
        yield content


def chats() -> Iterator[bytes]:
    """The file's chats (500 bytes each), a permutation of the letters for each repetition."""
    yield from _repeated(_texts())


def long() -> Iterator[bytes]:
    """The same texts, as many joined as make a record of about LONG bytes."""
    joined: Texts = []
    question, answer = "", ""
    for asked, answered in _texts():
        question, answer = f"{question}{asked}\n\n", f"{answer}{answered}\n\n"
        if len(question) + len(answer) >= LONG - 400:
            joined.append((question, answer))
            question, answer = "", ""
    yield from _repeated(joined)


def up_to(size: int, repetitions: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines of ``repetitions``, ``size`` bytes in all, short of less than a line."""
    for content in repetitions:
        if size <= len(content):
            yield content[: content.rfind(b"\n", 0, size) + 1]
            return
        size -= len(content)
        yield content


def write(path: Path, size: int, repetitions: Iterable[bytes]) -> Path:
    """A file of ``size`` bytes at most."""
    with path.open("wb") as file:
        file.writelines(up_to(size, repetitions))
    return path


def _texts() -> Texts:
    records = [json.loads(line)["messages"] for line in source().read_bytes().splitlines()]
    return [(messages[0]["content"], messages[1]["content"]) for messages in records]


def _repeated(texts: Texts) -> Iterator[bytes]:
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for repetition in count():
        permuted = random.Random(repetition).sample(LETTERS, len(LETTERS))  # noqa: S311
        table = str.maketrans(LETTERS, LETTERS if repetition == 0 else "".join(permuted))
        lines = [
            encode({"messages": [
                {"role": "user", "content": asked.translate(table)},
                {"role": "assistant", "content": answered.translate(table)},
            ]}) for asked, answered in texts
        ]  # fmt: skip
        yield ("\n".join(lines) + "\n").encode()


KINDS = {"chats": chats, "long": long, "verbatim": verbatim}

if __name__ == "__main__":
    sys.stdout.buffer.writelines(up_to(int(sys.argv[2]), KINDS[sys.argv[1]]()))
