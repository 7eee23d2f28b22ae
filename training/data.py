"""The examples of a data set, in memory or, for a file of any size, on the disk."""

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training import FineTuneError
from training.arguments import FineTuneArguments
from training.chat_templates import training_template
from training.labels import IGNORED, Labelled, Labeller
from training.records import (
    Message,
    Record,
    RecordCounts,
    count_records,
    is_context,
    numbered_records,
    read_records,
    with_copies_without_system,
    without_system,
    without_weights,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "Message",
    "Record",
    "RecordCounts",
    "Statistics",
    "count_records",
    "is_context",
    "read_records",
    "tokenize",
    "training_set",
    "training_template",
    "with_copies_without_system",
    "without_weights",
]

# A block is tokenized at once. While it is, a token takes some hundred bytes.
BLOCK_RECORDS = 1000
BLOCK_CHARACTERS = 250_000


@dataclass
class Statistics:
    """What became of the records of a training file; copies without the system message count as records.

    ``too_long``: chats left out because nothing of an answer lies within ``max_length`` tokens. ``context_only``:
    chats left out because all their weights are 0. ``cut``: chats that lost their end. ``lengths``: how many records
    have how many tokens, before any is cut or split. ``tokens`` and ``trained_tokens``: of the examples, an epoch.
    """

    chats: int = 0
    texts: int = 0
    chat_examples: int = 0
    text_examples: int = 0
    too_long: int = 0
    context_only: int = 0
    cut: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lengths: Counter[int] = field(default_factory=Counter)

    @property
    def examples(self) -> int:
        """All examples, of chats and of texts."""
        return self.chat_examples + self.text_examples

    def add(self, records: list[Labelled], max_length: int, *, are_texts: bool) -> None:
        """Count what became of these records, which are all texts or all chats."""
        count = sum(len(record.examples) for record in records)
        self.lengths.update(record.tokens for record in records)
        self.tokens += sum(len(example.ids) for record in records for example in record.examples)
        self.trained_tokens += sum(
            int((example.labels != IGNORED).sum()) for record in records for example in record.examples
        )
        if are_texts:
            self.texts += len(records)
            self.text_examples += count
            return
        self.chats += len(records)
        self.chat_examples += count
        self.context_only += sum(record.context_only for record in records)
        self.too_long += sum(not record.examples and not record.context_only for record in records)
        self.cut += sum(bool(record.examples) and record.tokens > max_length for record in records)


def training_set(
    arguments: FineTuneArguments, tokenizer: "PreTrainedTokenizerBase", scratch: Path
) -> tuple["Dataset", Statistics]:
    """Tokenize ``arguments.train_file`` into Arrow files in ``scratch``, and return them as one mapped data set.

    A block of records is in memory at a time, however large the file. The data set has the columns of ``tokenize``;
    first come the chats in the file's order, then, with ``copies_without_system``, their copies, then the texts.
    ``scratch`` must last as long as the data set and needs 8 bytes for a token; what TRL makes of the data set lies
    beside it, as much again for each of its passes.

    Raises FineTuneError for a bad record, for a template that does not fit (see ``Labeller.chats``), when nothing is
    left to train on, and when the disk is full.
    """
    from datasets import Dataset, concatenate_datasets

    path = Path(arguments.train_file)
    labeller = Labeller(tokenizer, arguments.max_length, arguments.loss_on)
    statistics = Statistics()
    paths = [scratch / f"{kind}.arrow" for kind in ("chats", "copies", "texts")]
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with _Writer(str(paths[0])) as chats, _Writer(str(paths[1])) as copies, _Writer(str(paths[2])) as texts:
            for block in blocks(numbered_records(path)):
                whole, plain = _apart(block)
                without = [(n, copy) for n, chat in whole if (copy := without_system(chat))]
                for writer, part in ((chats, whole), (copies, without if arguments.copies_without_system else [])):
                    labelled = labeller.chats([chat for _, chat in part], [f"{path.name} line {n}" for n, _ in part])
                    statistics.add(labelled, arguments.max_length, are_texts=False)
                    writer.write(labelled)
                split = labeller.texts(plain)
                statistics.add(split, arguments.max_length, are_texts=True)
                texts.write(split)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FineTuneError(
            f"the disk is full: the tokens of {path.name} need 8 bytes each in {scratch}; choose a machine with a "
            "larger disk, or train on fewer records"
        ) from error
    if not statistics.examples:
        raise FineTuneError(
            f"no record leaves anything to train on within max_length={arguments.max_length} tokens: the prompts are "
            "longer than that, or every answer has the weight 0"
        )
    parts = [Dataset.from_file(str(each)) for each in paths]
    return concatenate_datasets([part for part in parts if len(part)]), statistics


def tokenize(
    records: Iterable[Record],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    loss_on: Literal["assistant", "all"],
) -> "Dataset":
    """Return a data set with ``input_ids`` and ``labels`` (at most ``max_length`` int32 each) for each example.

    ``labels`` is ``input_ids`` with ``IGNORED`` where nothing is trained. A chat is one example, cut at its end; it is
    left out when nothing of it would be trained, for example because its prompt alone is longer than ``max_length``.
    Turns of the assistant with the weight 0 are not trained, whatever ``loss_on``. The order is that of the records.

    A text is tokenized as it is, without the chat template, the end-of-text token is put behind it, and every token is
    trained, whatever ``loss_on``. A longer text makes several examples, one after the other and without overlap.

    Raises FineTuneError as ``Labeller.chats`` does.
    """
    import pyarrow as pa
    from datasets import Dataset

    labeller = Labeller(tokenizer, max_length, loss_on)
    sink = pa.BufferOutputStream()
    with _Writer(sink) as writer:
        for block in blocks(enumerate(records, 1)):
            whole, plain = _apart(block)
            chats = iter(labeller.chats([chat for _, chat in whole], [f"record {n}" for n, _ in whole]))
            texts = iter(labeller.texts(plain))
            writer.write([next(texts) if isinstance(record, str) else next(chats) for _, record in block])
    return Dataset.from_buffer(sink.getvalue())


def blocks(records: Iterable[tuple[int, Record]]) -> Iterator[list[tuple[int, Record]]]:
    """Yield the numbered records in lists, each of at most BLOCK_RECORDS records and about BLOCK_CHARACTERS."""
    block: list[tuple[int, Record]] = []
    characters = 0
    for number, record in records:
        block.append((number, record))
        characters += len(record) if isinstance(record, str) else sum(len(each["content"]) for each in record)
        if len(block) == BLOCK_RECORDS or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _apart(block: list[tuple[int, Record]]) -> tuple[list[tuple[int, list[Message]]], list[str]]:
    chats = [(number, record) for number, record in block if isinstance(record, list)]
    return chats, [record for _, record in block if isinstance(record, str)]


class _Writer:
    """Writes examples to a path or a pyarrow sink, in the stream format that ``datasets`` maps into memory."""

    def __init__(self, sink: Any) -> None:
        import pyarrow as pa

        tokens = pa.list_(pa.int32())
        schema = pa.schema({"input_ids": tokens, "labels": tokens})
        self._stream = pa.ipc.new_stream(sink, schema)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, records: list[Labelled]) -> None:
        """Write the records' examples as one batch."""
        import pyarrow as pa

        examples = list(chain.from_iterable(record.examples for record in records))
        if not examples:
            return
        offsets = np.cumsum([0, *(len(example.ids) for example in examples)], dtype=np.int32)
        columns = [[example.ids for example in examples], [example.labels for example in examples]]
        arrays = [pa.ListArray.from_arrays(offsets, np.concatenate(column)) for column in columns]
        self._stream.write_batch(pa.record_batch(arrays, names=["input_ids", "labels"]))
