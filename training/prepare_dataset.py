"""Make train.jsonl and eval.jsonl, as the intake wants them, of a Hugging Face data set or a local file.

Run as: python -m training.prepare_dataset HuggingFaceH4/ultrachat_200k --split "train_sft[:1%]" --output data/
"""

import argparse
import contextlib
import json
import logging
import math
import os
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from training import FineTuneError
from training.convert import TARGETS, Converted, LeftOut, UnknownColumns, convert
from training.hub import read_folder, read_hub
from training.sources import is_file_name, read_file
from training.upload import by_hand, uploader

_TRAIN, _EVAL = "train.jsonl", "eval.jsonl"
_MODEL_NAME = re.compile(r"[a-z][a-z0-9-]{1,24}")  # as in function_app/intake.py
_LONGEST_LINE = 2 * 2**20  # bytes, as in the intake
_FEWEST_RECORDS = 10  # the intake refuses fewer
_SAY_EVERY = 10.0  # seconds, on a terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a data set with command-line arguments; return the exit code."""
    arguments = _arguments(argv)
    _quiet_libraries()
    try:
        _prepare(arguments)
    except FineTuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write to {arguments.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.prepare_dataset", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add = parser.add_argument
    add("dataset", help="a data set's id on the Hugging Face Hub (owner/name), a file or a folder")
    add("--config", help="the data set's configuration, such as wikitext-2-v1")
    add("--split", help="the part to read: train, train_sft[:1%%], train[:100] (default: train, or the only one)")
    add("--output", type=Path, default=Path("data"), help="the folder for train.jsonl and eval.jsonl (default: data)")
    add(
        "--eval-share", type=_share, default=0.2, help="the share of the records for eval.jsonl (default: 0.2; 0: none)"
    )
    add("--seed", type=int, default=0, help="another seed holds other records out (default: 0)")
    add(
        "--columns",
        type=_columns,
        default={},
        help="prompt=question,completion=answer; also system, context, messages, text",
    )
    add("--offline", action="store_true", help="do not ask the hub, use the cache (HF_HOME)")
    add("--force", action="store_true", help="overwrite train.jsonl and eval.jsonl")
    add("--upload", type=_model, metavar="MODEL", help="put both into the datasets container, for this model")
    add("--account-url", help="the storage account to upload to (default: Storage__blobServiceUri)")
    arguments = parser.parse_args(argv)
    account = urlsplit(arguments.account_url or os.environ.get("Storage__blobServiceUri", ""))
    if arguments.upload and (not account.netloc or account.query):  # a query would be a shared access signature
        parser.error(
            "--upload needs --account-url https://<account>.blob.core.windows.net, without a ?, or "
            "Storage__blobServiceUri; it signs in as `az login` says"
        )
    return arguments


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1, found {text!r}")


def _columns(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    columns = {target.strip(): column.strip() for target, _, column in pairs}
    if len(columns) < len(pairs) or not all(target in TARGETS and column for target, column in columns.items()):
        raise argparse.ArgumentTypeError(
            f"must be like prompt=question,completion=answer, on the left any of {', '.join(TARGETS)}; found {text!r}"
        )
    if not columns.keys() & {"messages", "text"} and not {"prompt", "completion"} <= columns.keys():
        raise argparse.ArgumentTypeError("must name messages, or text, or both prompt and completion")
    return columns


def _model(text: str) -> str:
    if _MODEL_NAME.fullmatch(text):
        return text
    raise argparse.ArgumentTypeError(
        f"is 2 to 25 lower-case letters, digits and hyphens, a letter first; found {text!r}"
    )


def _quiet_libraries() -> None:
    """Leave progress bars to terminals and advice to nobody; the libraries read this when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
            os.environ.setdefault(name, "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def _prepare(arguments: argparse.Namespace) -> None:
    account = arguments.account_url or os.environ.get("Storage__blobServiceUri", "")
    upload = (
        uploader(account, arguments.upload) if arguments.upload else None
    )  # before any work, if a package is missing
    folder: Path = arguments.output
    outputs = [folder / _TRAIN, folder / _EVAL]
    existing = [str(path) for path in outputs if path.exists()]
    if existing and not arguments.force:
        raise FineTuneError(f"{' and '.join(existing)} already there; name another --output, or overwrite with --force")
    records = _source(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=folder) as scratch:
        every = Path(scratch) / "every.jsonl"
        with every.open("wb") as file:
            summary = _convert_all(records, arguments.columns, file)
        fewest = 2 if arguments.eval_share else 1
        if summary.kept < fewest:
            reason = f" ({summary.left_out.most_common(1)[0][0]})" if summary.left_out else ""
            raise FineTuneError(
                f"of {_count(summary.read)} of {arguments.dataset} {summary.kept} can be trained on{reason}; "
                f"at least {fewest} must be"
            )
        held_out = _held_out(summary.kept, arguments.eval_share, arguments.seed)
        parts = [Path(scratch) / _TRAIN, Path(scratch) / _EVAL]
        with every.open("rb") as lines, parts[0].open("wb") as train, parts[1].open("wb") as evaluation:
            for line, out in zip(lines, held_out, strict=True):
                (evaluation if out else train).write(line)
        # eval.jsonl first, as for the upload: a new train.jsonl beside an old eval.jsonl may hold its records.
        if any(held_out):
            parts[1].replace(outputs[1])
        else:
            outputs[1].unlink(missing_ok=True)
        parts[0].replace(outputs[0])
    counts = [summary.kept - sum(held_out), sum(held_out)]
    written = [(path, count) for path, count in zip(outputs, counts, strict=True) if count]
    print(summary.text(arguments.dataset, arguments.split, written))
    if counts[0] < _FEWEST_RECORDS:
        enough = summary.kept >= _FEWEST_RECORDS
        print(
            f"note: the intake refuses a {_TRAIN} of fewer than {_FEWEST_RECORDS} records; "
            + (f"hold fewer out: --eval-share 0, without an {_EVAL} it does so itself" if enough else "more are needed")
        )
    if upload:
        for path, _ in reversed(written):
            upload(path)
    else:
        print(by_hand([path for path, _ in reversed(written)]))


def _source(arguments: argparse.Namespace) -> Iterable[Any]:
    path = Path(arguments.dataset).expanduser()
    if path.is_dir():
        return read_folder(path, arguments.config, arguments.split)
    if path.exists():
        return read_file(path, arguments.split)
    if is_file_name(arguments.dataset):
        raise FineTuneError(f"{arguments.dataset} does not exist; looked for it at {path.absolute()}")
    return read_hub(arguments.dataset, arguments.config, arguments.split, offline=arguments.offline)


@dataclass
class _Summary:
    """What became of the records."""

    read: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)  # reason: the first record with it, counted from 1
    cut: int = 0
    unused: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        return self.forms.total()

    def text(self, name: str, split: str | None, written: Iterable[tuple[Path, int]]) -> str:
        """Return the whole in a few lines."""
        lines = [f"{name}{f', {split}' if split else ''}: {_count(self.read)}"]
        lines += [f"{number:>10,} kept: {form}" for form, number in self.forms.most_common()]
        if self.cut:
            lines.append(f"{self.cut:>10,} of them cut behind the assistant's last answer")
        for reason, number in self.left_out.most_common():
            lines.append(f"{number:>10,} left out: {reason} (first: record {self.first[reason]:,})")
        if self.unused:
            names = [repr(column[:60]) for column in self.unused]
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            lines.append(f"columns not used: {', '.join(names[:10])}{more}")
        lines += [f"wrote {path}: {_count(number)}, {path.stat().st_size:,} bytes" for path, number in written]
        return "\n".join(lines)


def _convert_all(records: Iterable[Any], columns: dict[str, str], file: IO[bytes]) -> _Summary:
    """Write what can be trained on, one JSON object a line; all chats or all texts, as the first one is."""
    summary, kind = _Summary(), None
    for record in _with_progress(records):
        summary.read += 1
        try:
            if isinstance(record, LeftOut):
                raise record
            converted = convert(record, columns)
            kind = kind or next(iter(converted.record))
            file.write(_line(converted, kind))
        except UnknownColumns as error:
            if not summary.kept:
                raise FineTuneError(
                    f"record {summary.read}: {error}. Say which is which: --columns prompt=question,completion=answer, "
                    "--columns messages=…, or --columns text=…"
                ) from error
            _leave_out(summary, "other columns than the records before")
        except LeftOut as error:
            _leave_out(summary, str(error))
        else:
            summary.forms[converted.form] += 1
            summary.cut += converted.cut
            summary.unused.update(str(column) for column in record if column not in converted.used)
    return summary


def _leave_out(summary: _Summary, reason: str) -> None:
    summary.left_out[reason] += 1
    summary.first.setdefault(reason, summary.read)


def _line(converted: Converted, kind: str) -> bytes:
    if kind not in converted.record:
        raise LeftOut("a plain text among chats" if kind == "messages" else "a chat among plain texts")
    try:
        line = json.dumps(converted.record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise LeftOut("half a character (a lone surrogate)") from error
    if len(line) > _LONGEST_LINE:
        raise LeftOut(f"longer than {_LONGEST_LINE // 2**20} MiB")
    return line


def _with_progress(records: Iterable[Any]) -> Iterator[Any]:
    said = time.monotonic()
    for number, record in enumerate(records):
        yield record
        if number % 1000 == 0 and sys.stderr.isatty() and time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            print(f"… {_count(number)}", file=sys.stderr)


def _held_out(count: int, share: float, seed: int) -> bytearray:
    """Return a 1 for each record that is held out: those that ``Dataset.train_test_split(share, seed=seed)`` takes."""
    import numpy

    held_out = bytearray(count)
    number = min(math.ceil(share * count), count - 1)
    for index in numpy.random.default_rng(seed).permutation(count)[:number]:
        held_out[index] = 1
    return held_out


def _count(number: int) -> str:
    return f"{number:,} record{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
