"""``python -m emulator``: starts that overlap, break off or fail, and what ``env`` prints."""

import fcntl
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from emulator import __main__ as command_line
from emulator import processes
from emulator.config import ConfigError, Home, load_project
from tests.local_azure import exports

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(load_project(ROOT / "emulator.yaml"), tmp_path)


def sleeper(*_: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sleep", "987"], start_new_session=True)


def test_logs_are_kept_for_one_start_more(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "_start", lambda *_: 0.0)
    for number in range(3):
        (home.logs / "control.log").write_text(str(number))
        command_line.up(home, 1)
    assert [log.name for log in home.logs.iterdir()] == ["control.previous.log"]
    assert (home.logs / "control.previous.log").read_text() == "2"


def test_after_an_interrupted_start_there_is_something_to_stop(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_detach", sleeper)
    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command_line.up(home, 1)
    monkeypatch.undo()
    state = home.load()
    assert state is not None
    assert state.supervisor is not None
    assert processes.alive(state.supervisor)
    assert command_line._stop(home)
    assert not processes.alive(state.supervisor)


def test_two_starts_of_one_checkout_start_one_supervisor(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(home: Home, state: Any, copies: int) -> float:
        time.sleep(0.3)
        started.append(sleeper())
        state.supervisor = processes.identify(started[-1].pid)
        home.save(state)
        return 0.0

    monkeypatch.setattr(command_line, "_start", start)
    monkeypatch.setattr(command_line, "status", lambda _: None)
    threads = [threading.Thread(target=command_line.up, args=(home, 1)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in started:
        process.kill()
        process.wait()
    assert len(started) == 1


def test_ports_are_chosen_by_one_start_of_this_machine_at_a_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def start(*_: Any) -> float:
        with (Path(tempfile.gettempdir()) / f"local-azure-{os.getuid()}.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)
        return 0.0

    monkeypatch.setattr(command_line, "_start", start)
    command_line.up(home, 1)
    assert held == [True]


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "localhost,127.0.0.1"), ("intra.example, localhost", "intra.example,localhost,127.0.0.1")],
)
def test_the_shell_reaches_loopback_without_its_proxy(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: str, after: str
) -> None:
    monkeypatch.setenv("NO_PROXY", before)
    monkeypatch.delenv("no_proxy", raising=False)
    home.prepare()
    command_line.env(home)
    printed = exports(capsys.readouterr().out)
    assert (printed["NO_PROXY"], printed["no_proxy"]) == (after, after)


def test_a_start_says_which_part_keeps_dying_and_where_its_log_is(tmp_path: Path) -> None:
    broken = tmp_path / "venv" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    project = {"subscription": "s", "tenant": "t", "resource_group": "g", "workspace": "w", "location": "l"}
    (tmp_path / "emulator.yaml").write_text(json.dumps({**project, "mlflow_python": "venv"}))
    home = Home(load_project(tmp_path / "emulator.yaml"), tmp_path / "home")
    with pytest.raises(ConfigError, match="mlflow") as error:
        command_line.up(home, 1)
    assert str(home.logs / "mlflow.log") in str(error.value)
    assert not command_line.running(home)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(home.path) in " ".join(p.info["cmdline"] or [])]
