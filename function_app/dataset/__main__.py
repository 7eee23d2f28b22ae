"""The checker for people: what the intake would say of a file, before it is dropped.

Run as: python -m function_app.dataset FILE
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from .report import Report

BLOCK = 1 << 20
PROGRESS_FROM = 20_000_000  # bytes; a smaller file is read before a bar could be looked at
STDIN = Path("-")
EXIT_CODES = "Exit code: 0 accepted (warnings included), 1 rejected, 2 wrong usage, 130 interrupted."


class UsageError(Exception):
    """The command cannot be carried out as it was given; the message is one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.rules:
            from .markdown import rules_table

            return _write(rules_table() + "\n", 0)
        if options.file is None:
            parser.error("which file? (- reads standard input)")
        return _check(options)
    except UsageError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m function_app.dataset",
        description="Check a dataset as it would be checked when dropped, without Azure and without changing anything.",
        epilog="recipe.yaml, eval.jsonl and tokenizer.json beside FILE are used as they would be there. " + EXIT_CODES,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help=".jsonl or .jsonl.gz; - is standard input")
    parser.add_argument("--eval", metavar="FILE", type=Path, help="the held-out examples (default: beside FILE)")
    parser.add_argument("--recipe", metavar="FILE", type=Path, help="the recipe (default: beside FILE)")
    parser.add_argument("--tokenizer", metavar="FILE", type=Path, help="a Hugging Face tokenizer.json: exact counts")
    parser.add_argument("--alone", action="store_true", help="leave aside what lies beside FILE")
    parser.add_argument("--json", action="store_true", help="print the report's JSON")
    parser.add_argument("--quiet", action="store_true", help="print the verdict only")
    parser.add_argument("--rules", action="store_true", help="print the table of all rules and end")
    return parser


def _check(options: argparse.Namespace) -> int:
    """Check the file with its companions and print the report. Raises UsageError."""
    from ..examine import Companions, examine

    path: Path = options.file
    beside = [] if options.alone or path == STDIN else _companions(path)
    used = {path.name: path for path in beside}
    eval_file = options.eval or used.get("eval.jsonl") or used.get("eval.jsonl.gz")
    recipe = options.recipe or used.get("recipe.yaml")
    tokenizer = options.tokenizer or used.get("tokenizer.json")
    for given in (path, options.eval, options.recipe, options.tokenizer):
        _must_be_a_file(given)
    if path == options.eval == STDIN:
        raise UsageError("only one of the two files can come from standard input.")
    report = Report(dataset="standard input" if path == STDIN else path.name, checked_at=datetime.now(UTC))
    with ExitStack() as stack:
        try:
            name, chunks = _open(path, stack)
            eval_name, eval_chunks = _open(eval_file, stack) if eval_file else ("eval.jsonl", None)
            companions = Companions(
                recipe=_bytes(recipe) if recipe else None,
                recipe_name=recipe.name if recipe else "recipe.yaml",
                tokenizer=_bytes(tokenizer) if tokenizer else None,
                eval_chunks=eval_chunks,
                eval_name=eval_name,
            )
            examine(chunks, report, name=name, companions=companions)
        except OSError as error:
            raise UsageError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None
    return _print(report, options, [file for file in beside if file in (eval_file, recipe, tokenizer)])


def _companions(path: Path) -> list[Path]:
    """What lies beside the file and counts, as in the container of datasets."""
    names = ["recipe.yaml", "eval.jsonl", "tokenizer.json"]
    if not path.with_name("eval.jsonl").is_file():
        names[1] = "eval.jsonl.gz"
    found = [path.with_name(name) for name in names if path.with_name(name).is_file()]
    return [companion for companion in found if not (path.exists() and companion.samefile(path))]


def _must_be_a_file(path: Path | None) -> None:
    if path is None or path == STDIN:
        return
    if not path.exists():
        raise UsageError(f"{path} is not there.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name one file in it.")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def _open(path: Path, stack: ExitStack) -> tuple[str, Iterator[bytes]]:
    """The name by which the file is checked, and its bytes; with a bar when it is large and someone is watching."""
    if path == STDIN:
        first = sys.stdin.buffer.read(BLOCK)
        name = "stdin.jsonl.gz" if first.startswith(b"\x1f\x8b") else "stdin.jsonl"  # it has no name to go by
        return name, _blocks(sys.stdin.buffer, first)
    file = stack.enter_context(path.open("rb"))
    size = path.stat().st_size
    if size > PROGRESS_FROM and sys.stderr.isatty():
        return path.name, _with_bar(file, size, stack)
    return path.name, _blocks(file)


def _blocks(file: BinaryIO, first: bytes = b"") -> Iterator[bytes]:
    if first:
        yield first
    while block := file.read(BLOCK):
        yield block


def _with_bar(file: BinaryIO, size: int, stack: ExitStack) -> Iterator[bytes]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task("", total=size)

    def blocks() -> Iterator[bytes]:
        for block in _blocks(file):
            yield block
            bar.advance(task, len(block))

    return blocks()


def _print(report: Report, options: argparse.Namespace, beside: list[Path]) -> int:
    code = 0 if report.valid else 1
    if options.json:
        return _write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n", code)
    from .terminal import terminal

    notes = []
    if beside:
        *names, last = [file.name for file in beside]
        listed = f"{', '.join(names)} and {last}" if names else last
        notes.append(f"With {listed} from the same folder; --alone leaves that aside.")
    if options.file != STDIN and not options.file.name.endswith((".jsonl", ".jsonl.gz")):
        notes.append("To be dropped, the file needs a name that ends in .jsonl or .jsonl.gz.")
    return _write(terminal(report, notes, sys.stdout, quiet=options.quiet), code)


def _write(text: str, code: int) -> int:
    """Write to standard output; a reader that has gone, as `head` does, is no failure."""
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    sys.exit(main())
