"""Every example in docs/chat.md, run as it is written against the local Azure, with a model of milliseconds.

An example is a block of code under a line ``<!-- example: <name> -->``. Only the model is called otherwise: as no other
module of this package has it. ``EXPECTED`` says what each must print.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from function_app.chat_keys import digest, read_keys
from tests import instant
from tests.local_azure import LocalAzure, exports

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "chat.md"
CLIENTS = ROOT / "tests" / "clients"
FENCE = re.compile(r"(?:^<!-- example: (?P<name>\S+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
MODEL, QUESTION = "handbook", "Where is the workshop?"


@dataclass(frozen=True)
class Example:
    """A block of code of the document."""

    name: str
    language: str
    code: str


def examples() -> dict[str, Example]:
    """By name, in the document's order; one without a name is called by its place and so has nothing expected of it."""
    found = {}
    for number, match in enumerate(FENCE.finditer(DOCUMENT.read_text(encoding="utf-8"))):
        name = match["name"] or f"number {number}, which has no line <!-- example: … --> above it"
        assert name not in found, f"two examples in docs/chat.md are called {name}"
        found[name] = Example(name, match["language"], re.sub(r"\bsupport\b", MODEL, match["code"]))
    return found


@dataclass(frozen=True)
class Shell:
    """Where the examples run: as a reader's shell after the first of them."""

    azure: LocalAzure
    run: dict[str, Any]  # the record of the run that is live
    environment: dict[str, str]
    folder: Path

    @property
    def answer(self) -> str:
        """What the model says."""
        return instant.answer(self.run["id"], QUESTION)

    def execute(self, example: Example) -> str:
        """What the example prints; it must end well."""
        path = self.folder / f"{example.name}.mjs"
        commands = {
            "sh": ["bash", "-euc", example.code.replace("curl ", "curl -sS --fail ")],
            "python": [sys.executable, "-c", example.code],
            "js": ["node", str(path)],
            "yaml": [sys.executable, "-m", "function_app.recipe", str(path)],
        }
        path.write_text(example.code, encoding="utf-8")
        done = subprocess.run(
            commands[example.language], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{example.name}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def shell(instant_azure: LocalAzure, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A model is live, and the first example has been run."""
    assert (CLIENTS / "node_modules" / "openai").is_dir(), "OpenAI's client for Node is not installed: make install"
    recipe = "release: {step_minutes: 0}\n"
    instant_azure.drop(f"{MODEL}/recipe.yaml", recipe.encode())
    run = instant_azure.wait_for_end(MODEL, instant_azure.drop(f"{MODEL}/data.jsonl", instant.dataset("one")), limit=60)
    assert run["stage"] == "live", run["history"][-1]["reason"]
    folder = tmp_path_factory.mktemp("examples")
    (folder / "node_modules").symlink_to(CLIENTS / "node_modules")
    found = re.fullmatch(r'eval "\$\((.*)\)"\n', examples()["setup"].code)
    assert found, "the first example is another"
    before = {**os.environ, "EMULATOR_HOME": str(instant_azure.home)}
    printed = subprocess.run(found[1], shell=True, cwd=ROOT, env=before, capture_output=True, text=True, check=True)  # noqa: S602
    return Shell(instant_azure, run, {**before, **exports(printed.stdout)}, folder)


def whole(shell: Shell, printed: str) -> None:
    assert json.loads(printed)["choices"][0]["message"]["content"] == shell.answer


def events(shell: Shell, printed: str) -> None:
    lines = printed.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert len(chunks) > 3
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == shell.answer


def text(more: str = "") -> Callable[[Shell, str], None]:
    """The answer, then what matches ``more``."""

    def check(shell: Shell, printed: str) -> None:
        assert re.fullmatch(re.escape(shell.answer) + more, printed.rstrip("\n")), printed

    return check


def models(shell: Shell, printed: str) -> None:
    listed, described = (json.loads(each) for each in re.split(r"(?<=})(?={)", printed))
    assert described in listed["data"]
    assert (described["id"], described["run_id"]) == (MODEL, shell.run["id"])


def pinned(shell: Shell, printed: str) -> None:
    assert re.fullmatch(rf"{MODEL}@\d{{17}}\n", printed)


def page(shell: Shell, printed: str) -> None:
    """What the line says is done, in a real browser."""
    said = re.fullmatch(r"Open (http\S+/api/chat) and paste the key (\S+)\n", printed)
    assert said
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium to open the page")
    with sync_playwright() as tools, tools.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        tab = browser.new_page()
        tab.goto(said[1])
        tab.get_by_placeholder("Paste the key").fill(said[2])
        tab.keyboard.press("Enter")
        tab.locator("#text:focus").wait_for()
        tab.get_by_label("Message", exact=True).fill(QUESTION)
        tab.keyboard.press("Enter")
        tab.get_by_text(shell.answer, exact=True).wait_for()


def recipe(shell: Shell, printed: str) -> None:
    assert "max_severity: 2" in printed
    assert "You answer for a bicycle workshop" in printed


def long(shell: Shell, printed: str) -> None:
    dropped, read = printed.splitlines()
    assert int(read.removesuffix(" tokens were read")) > 0
    number = int(dropped.removesuffix(" messages were left out"))
    assert 0 < number < 81
    assert number % 2 == 0, "a turn is a question and its answer"


def matches(pattern: str) -> Callable[[Shell, str], None]:
    def check(shell: Shell, printed: str) -> None:
        assert re.fullmatch(pattern, printed.strip(), re.S), printed

    return check


def key(shell: Shell, printed: str) -> None:
    (entry,) = re.findall(r"^ *(shop:\S+)$", printed, re.M)
    (stored,) = read_keys(entry)
    (secret,) = re.findall(r"^ *([A-Za-z0-9_-]{43})$", printed, re.M)
    assert digest(stored.salt, secret) == stored.digest
    assert (stored.name, stored.models, stored.concurrency) == ("shop", {MODEL}, 8)


def openapi(shell: Shell, printed: str) -> None:
    described = json.loads(printed)
    assert described["openapi"].startswith("3.1")
    assert any(path.endswith("/chat/completions") for path in described["paths"])


EXPECTED: dict[str, Callable[[Shell, str], None]] = {
    "curl": whole,
    "curl-stream": events,
    "python": text(r"\n\d+ tokens, request [0-9a-f]{32}"),
    "python-stream": text(r"\n\d+ tokens"),
    "node": text(),
    "node-stream": text(),
    "page": page,
    "models": models,
    "pin": pinned,
    "recipe": recipe,
    "long": long,
    "errors": matches(r"model_not_found [0-9a-f]{32}\nThe model 'suport' .*\b" + MODEL + r"\b.*"),
    "node-errors": matches(r"401 invalid_api_key 401 .*"),
    "key": key,
    "entra": text(),
    "openapi": openapi,
}


def test_each_block_of_code_in_the_document_is_an_example_that_is_run() -> None:
    assert list(examples()) == ["setup", *EXPECTED]


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_prints_what_the_document_says(shell: Shell, name: str) -> None:
    EXPECTED[name](shell, shell.execute(examples()[name]))
