"""`python -m function_app.dataset`: what it reads, what it prints where, and how it exits."""

import gzip
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from function_app.dataset import __main__ as checker
from function_app.dataset.report import Report

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


class Limits(msgspec.Struct):
    context: int | None
    max_length: int | None
    tokenizer: bytes | None


class Standin:
    """A check_file that takes any line without "bad" in it, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.before: Callable[[], None] = lambda: None

    def check_file(self, chunks: Iterable[bytes], report: Report, **options: Any) -> None:
        self.before()
        content = b"".join(chunks)
        evaluation = b"".join(options.pop("eval_chunks", None) or [])
        self.asked = {**options, "content": content, "eval": evaluation}
        sizes = report.statistics
        for number, line in enumerate(content.splitlines(), 1):
            sizes.lines += 1
            if b"bad" in line:
                report.error("invalid_json", "Not valid JSON.", "Mend it.", line=number)
            else:
                sizes.records += 1
                sizes.train += 1


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Standin:
    standin = Standin()
    module = ModuleType("function_app.dataset.check")
    module.Limits, module.check_file = Limits, standin.check_file  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "function_app.dataset.check", module)
    return standin


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("good\n" * 12)
    return path


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process (a new one would import Azure's SDK each time): its exit code and its output."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        code = checker.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert err == ""
        return code, out

    return call


def test_a_good_file_exits_0_and_a_bad_one_1(check: Standin, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checker.main([str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Accepted: 12 records to train on, 0 held out."
    file.write_text("good\nbad\n")
    assert checker.main([str(file)]) == 1
    assert "line 2  Not valid JSON." in capsys.readouterr().out


def test_json_is_the_report_as_it_lies_in_the_container(
    check: Standin, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("good\nbad\n")
    assert checker.main(["--json", str(file)]) == 1
    text = capsys.readouterr().out
    report = msgspec.json.decode(text, type=Report)
    assert (report.dataset, report.errors) == ("chats.jsonl", 1)
    assert text == msgspec.json.format(msgspec.json.encode(report)).decode() + "\n"


def test_quiet_prints_one_line(check: Standin, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checker.main(["--quiet", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_lies_beside_the_file_is_used_and_said(
    check: Standin, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.with_name("recipe.yaml").write_text("training: {max_length: 512}")
    file.with_name("eval.jsonl").write_text("held\n")
    file.with_name("tokenizer.json").write_text("{}")
    checker.main([str(file)])
    assert check.asked["eval"] == b"held\n"
    assert check.asked["limits"].max_length == 512
    assert check.asked["limits"].tokenizer == b"{}"
    assert "With recipe.yaml, eval.jsonl and tokenizer.json from the same folder" in capsys.readouterr().out


def test_alone_leaves_that_aside_but_not_what_is_named(
    check: Standin, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.with_name("recipe.yaml").write_text("training: {max_length: 512}")
    file.with_name("eval.jsonl").write_text("held\n")
    mine = tmp_path / "mine.jsonl"
    mine.write_text("mine\n")
    checker.main([str(file), "--alone", "--eval", str(mine)])
    assert check.asked["eval"] == b"mine\n"
    assert check.asked["eval_name"] == "mine.jsonl"
    assert check.asked["limits"].max_length == 1024  # the default, not the recipe's
    assert "same folder" not in capsys.readouterr().out


def test_a_recipes_holdout_counts_and_a_packed_eval_set_is_found(check: Standin, file: Path) -> None:
    file.with_name("recipe.yaml").write_text("evaluation: {holdout: 0.25}")
    checker.main([str(file)])
    assert check.asked["holdout"] == 0.25
    file.with_name("eval.jsonl.gz").write_bytes(gzip.compress(b"held\n"))
    checker.main([str(file)])
    assert gzip.decompress(check.asked["eval"]) == b"held\n"
    assert check.asked["eval_name"] == "eval.jsonl.gz"


def test_an_eval_set_is_not_measured_on_itself(check: Standin, file: Path) -> None:
    own = file.rename(file.with_name("eval.jsonl"))
    checker.main([str(own)])
    assert check.asked["eval"] == b""
    assert check.asked["holdout"] == 0.1


def test_a_recipe_that_cannot_be_used_is_an_error_beside_those_of_the_file(
    check: Standin, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("bad\n")
    file.with_name("recipe.yaml").write_text("base_modle: embedded")
    assert checker.main([str(file)]) == 1
    out = capsys.readouterr().out
    assert "did you mean `base_model`?" in out
    assert "Not valid JSON." in out


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input_is_read_packed_or_not(
    check: Standin, packed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = gzip.compress(b"good\n") if packed else b"good\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert checker.main(["-"]) == 0
    assert check.asked["content"] == content
    assert check.asked["name"] == ("stdin.jsonl.gz" if packed else "stdin.jsonl")
    assert capsys.readouterr().out.startswith("standard input: accepted")


def test_a_name_that_could_not_be_dropped_is_told(
    check: Standin, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checker.main([str(file.rename(file.with_suffix(".txt")))])
    assert "needs a name that ends in .jsonl or .jsonl.gz" in capsys.readouterr().out


def test_wrong_usage_is_one_sentence_and_exits_2(
    check: Standin, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = file.with_name("missing.jsonl")
    for arguments in ([str(missing)], [str(file.parent)], [str(file), "--eval", str(missing)]):
        assert checker.main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert "is not there." in err or "is a folder" in err
    with pytest.raises(SystemExit) as exited:
        checker.main([])
    assert exited.value.code == 2


def test_a_file_that_cannot_be_read_is_said(check: Standin, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    check.before = fail
    assert checker.main([str(file)]) == 2
    assert f"{file} cannot be read: Input/output error." in capsys.readouterr().err


def test_ctrl_c_is_quiet(check: Standin, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    check.before = interrupt
    assert checker.main([str(file)]) == 130
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_on_a_terminals_standard_error_alone(
    check: Standin, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checker, "PROGRESS_FROM", 10)
    checker.main([str(file)])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    checker.main([str(file)])
    out, err = capsys.readouterr()
    assert "reading" in err
    assert "reading" not in out
    assert check.asked["content"] == b"good\n" * 12


def test_the_table_of_rules_can_be_piped_into_a_reader_that_leaves() -> None:
    # `head` closes its end before the table has been written, as a closed pipe does here from the start.
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "function_app.dataset", "--rules"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 0


def test_the_commands_help_says_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        checker.main(["--help"])
    assert exited.value.code == 0
    assert "1 rejected" in " ".join(capsys.readouterr().out.split())


# with the real check


def chats(count: int = 12) -> list[str]:
    return [
        json.dumps(
            {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "A number."}]}
        )
        for i in range(count)
    ]


def sample() -> bytes:
    """The file of the sample in docs/intake.md."""
    lines = chats(20)
    lines[2] = lines[2][:40]
    lines[6] = lines[6].replace('"user"', '"human"')
    lines[9] = json.dumps({**json.loads(lines[9]), "ticket": 4711})
    return "\n".join(lines).encode() + b"\n"


def test_really_a_good_file_is_accepted_and_its_packed_twin_alike(tmp_path: Path, run: Run) -> None:
    content = "\n".join(chats()).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    reports = []
    for name in ("a.jsonl", "b.jsonl.gz"):
        code, out = run("--json", tmp_path / name)
        assert code == 0, out
        reports.append(msgspec.json.decode(out, type=Report))
    plain, packed = reports
    assert plain.statistics.records == packed.statistics.records == 12
    assert (plain.statistics.train, plain.statistics.eval) == (packed.statistics.train, packed.statistics.eval)


def test_really_the_broken_lines_are_named(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.jsonl").write_bytes(sample())
    code, out = run(tmp_path / "a.jsonl")
    assert code == 1
    assert "line 3" in out
    assert "line 7" in out
    assert "ticket" in out


def test_really_nothing_at_all_is_rejected(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    code, out = run(tmp_path / "a.jsonl")
    assert code == 1
    assert "empty_file" in out


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not there")
@pytest.mark.parametrize(
    ("name", "code"), [("codegen-train.jsonl", 0), ("codegen-eval.jsonl", 0), ("codegen-alpaca-format.jsonl", 1)]
)
def test_really_the_shared_files(name: str, code: int, run: Run) -> None:
    found, out = run("--alone", SHARED / name)
    assert found == code, out


def test_really_a_terminal_gets_colours_and_its_width(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(sample())
    main_end, terminal_end = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-m", "function_app.dataset", str(tmp_path / "a.jsonl")]
    done = subprocess.Popen(command, cwd=ROOT, stdout=terminal_end, env=environment)
    os.close(terminal_end)
    shown = b""
    try:
        while block := os.read(main_end, 4096):
            shown += block
    except OSError:  # how Linux says that the other end is closed
        pass
    assert done.wait(60) == 1
    assert b"\x1b[1;31m" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert max(map(len, lines)) <= 80


def test_really_the_documented_sample_is_the_output(tmp_path: Path, run: Run) -> None:
    (tmp_path / "chats.jsonl").write_bytes(sample())
    _, output = run(tmp_path / "chats.jsonl")
    page = (ROOT / "docs" / "intake.md").read_text(encoding="utf-8")
    assert f"$ python -m function_app.dataset chats.jsonl\n{output}```" in page
