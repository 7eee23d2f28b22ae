"""Drop a file, watch it become a model, ask the model.

Run as: python -m demo [FILE.jsonl] [--model NAME] [--recipe recipe.yaml] [--ask QUESTION …]
"""

import argparse
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from azure.core.exceptions import AzureError
from azure.identity import DefaultAzureCredential
from azure.storage.blob import BlobServiceClient
from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from emulator import __main__ as local_azure
from emulator.config import ConfigError, Home, load_project
from emulator.environment import shell_environment

from . import watch

HERE = Path(__file__).parent
QUESTIONS = 3


class DemoError(Exception):
    """The demo cannot go on; the message says why and which log to read."""


class Demo:
    """The story, told on a console."""

    def __init__(self, home: Home, console: Console) -> None:
        self.home = home
        self.console = console
        self.started = 0.0

    def run(self, dataset: Path, model: str, recipe: Path | None, questions: list[str]) -> None:
        state = self.home.load()
        if state is None:
            raise DemoError("The local Azure has no state; start it with `make up`.")
        os.environ.update(shell_environment(self.home, state))
        storage = BlobServiceClient(os.environ["Storage__blobServiceUri"], credential=DefaultAzureCredential())
        record = self._drop_and_follow(storage, dataset, model, recipe)
        self._ask(record, model, questions)
        self._links(record)

    def _drop_and_follow(
        self, storage: BlobServiceClient, dataset: Path, model: str, recipe: Path | None
    ) -> watch.Json:
        if recipe is not None:
            storage.get_blob_client("datasets", f"{model}/recipe.yaml").upload_blob(recipe.read_bytes(), overwrite=True)
        self.console.print(f"\n[bold]Dropping {dataset.name}[/] into datasets/{model}/ …")
        blob = storage.get_blob_client("datasets", f"{model}/{dataset.name}")
        self.started = time.monotonic()
        etag = blob.upload_blob(dataset.read_bytes(), overwrite=True)["etag"]
        run_id = watch.find_run(storage, model, etag)
        record = self._follow(storage, run_id)
        twin = re.search(r"the same records and recipe as run ([\w-]+)", record["history"][-1]["reason"])
        if record["stage"] == "superseded" and twin:
            self.console.print("  Nothing is trained twice. Following the first drop's run:")
            record = self._follow(storage, twin[1])
        if record["stage"] != "live":
            if record["stage"] == "rejected" and "estimate" not in record["numbers"]:  # else the data was good
                report = storage.get_blob_client("reports", f"{record['id']}.md").download_blob().readall().decode()
                self.console.print("\n" + report, markup=False, soft_wrap=True)
            log = self.home.path / "jobs" / record["id"] / "std_log.txt"
            log = log if log.exists() else self.home.logs / "functions.log"
            raise DemoError(f"The run ended as {record['stage']}: {record['history'][-1]['reason']}\nlog: {log}")
        return record

    def _follow(self, storage: BlobServiceClient, run_id: str) -> watch.Json:
        """Show each stage as it comes, and a bar (without a terminal: a line at each quarter) while it trains."""
        with Bar(
            TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[note]}"),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task("training", total=None, visible=False, note="")

            def on_stage(event: watch.Json) -> None:
                bar.update(task, visible=event["stage"] == "training" and self.console.is_terminal)
                reason = escape(event["reason"].splitlines()[0])
                self.console.print(f"  {self._elapsed():>5}  [bold]{event['stage']:<11}[/] {reason}", soft_wrap=True)

            told = -1

            def on_progress(progress: watch.Progress) -> None:
                nonlocal told
                left = f"{progress.seconds_left:.0f} s left"
                note = f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  {left}"
                bar.update(task, total=progress.steps, completed=progress.step, note=note)
                quarter = 4 * progress.step // progress.steps
                if not self.console.is_terminal and quarter != told:
                    told = quarter
                    self.console.print(f"  {self._elapsed():>5}  {'':<11} {note}", highlight=False)

            return watch.follow(storage, run_id, on_stage, on_progress)

    def _ask(self, record: watch.Json, model: str, questions: list[str]) -> None:
        """Ask through the public chat route; beside each answer, what the base model said in the job's evaluation."""
        # The other engines answer no questions, so there may be none, or none with an answer.
        samples = {_question(sample): sample for sample in record["numbers"].get("samples") or []}
        questions = questions or list(samples)[:QUESTIONS]
        if not questions:  # plain texts hold none
            self.console.print(f"\nThe data holds no question to ask model {model!r}; ask your own with --ask.")
            return
        client = OpenAI(base_url=os.environ["APP_BASE_URL"] + "/api/v1", api_key=os.environ["CHAT_API_KEY"])
        self.console.print(f"\n[bold]Asking[/] {client.base_url} with the openai client, model {model!r}:")
        for number, question in enumerate(questions, 1):
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=128
            )
            if number == 1:
                self.console.print(f"  first answer {time.monotonic() - self.started:.0f} s after the drop")
            table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 2))
            table.add_column(style="bold", width=6)
            table.add_column(overflow="fold")
            table.add_row("you", escape(question))
            table.add_row("tuned", f"[green]{escape(answer.choices[0].message.content or '')}[/]")
            if "base" in samples.get(question, {}):
                table.add_row("base", f"[dim]{escape(_printable(samples[question]['base']))}[/]")
            self.console.print()
            self.console.print(table)

    def _links(self, record: watch.Json) -> None:
        base = os.environ["APP_BASE_URL"]
        self.console.print()
        for name, url in (
            ("chat page", f"{base}/api/chat"),
            ("chat API", f"{base}/api/v1/chat/completions"),
            ("API key", os.environ["CHAT_API_KEY"]),
            ("operations", f"{base}/api/operations/runs/{record['id']}, see docs/operations.md"),
            ("curves", record["links"].get("job", os.environ["MLFLOW_TRACKING_URI"])),
            ("data report", f"reports/{record['id']}.md, a blob beside the datasets"),
            *((("evaluation", f"reports/{record['id']}/evaluation.md"),) if "evaluation" in record["links"] else ()),
        ):
            self.console.print(f"  {name:<12} {url}", highlight=False, soft_wrap=True)

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self.started:.0f} s"


def _question(sample: watch.Json) -> str:
    return str(next((m["content"] for m in reversed(sample["messages"]) if m["role"] == "user"), ""))


def _printable(text: str, limit: int = 60) -> str:
    """What an untrained model says is noise; on one line it shows so without breaking the terminal."""
    clean = re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "·" for c in text)).strip()
    return clean[:limit] + ("…" if len(clean) > limit else "") or "(nothing)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=HERE / "dataset.jsonl", help="default: the sample file")
    parser.add_argument("--model", default="support", help="the folder to drop into; default: %(default)s")
    parser.add_argument("--recipe", type=Path, help="a recipe.yaml to drop before the file")
    parser.add_argument("--ask", action="append", default=[], help="a question to ask (may be repeated)")
    parser.add_argument("--project", type=Path, default=HERE.parent / "emulator.yaml", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recipe is None and arguments.file == HERE / "dataset.jsonl":
        arguments.recipe = HERE / "recipe.yaml"
    for file in filter(None, (arguments.file, arguments.recipe)):
        if not file.is_file():
            return _fail(f"{file} does not exist.")
    # A closed terminal or a kill stops what was started here, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    console = Console(highlight=False)
    home = Home(load_project(arguments.project))
    was_up = local_azure.running(home)
    code = 0
    try:
        if not was_up:
            console.print("Starting the local Azure …")
        local_azure.up(home, event_copies=1)
        Demo(home, console).run(arguments.file, arguments.model, arguments.recipe, arguments.ask)
        if console.is_terminal and not was_up:
            console.print("\nIt stays up until you press Ctrl-C.")
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print()
    except TimeoutError as error:
        code = _fail(f"{error}\nlog: {home.logs / 'functions.log'}")
    except (DemoError, ConfigError, OSError) as error:
        code = _fail(str(error))
    except (AzureError, OpenAIError) as error:
        code = _fail(f"{type(error).__name__}: {error}\nlog: {home.logs / 'functions.log'}")
    if not was_up:
        local_azure.down(home)
        if code == 0:
            console.print("`make up` starts it again, with the model; `make clean` forgets it.")
    return code


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
