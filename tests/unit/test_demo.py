"""The demo's telling of a run, without one."""

from pathlib import Path

from rich.console import Console

from demo.__main__ import Demo
from emulator.config import Home, load_project

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_whose_engine_answered_no_questions_is_told_too(tmp_path: Path) -> None:
    with (tmp_path / "told").open("w+", encoding="utf-8") as told:
        demo = Demo(Home(load_project(ROOT / "emulator.yaml"), tmp_path), Console(file=told))
        demo._ask({"numbers": {"engine": "pipeline"}}, "support", [])  # the registry's pipeline leaves no samples
        told.seek(0)
        assert "ask your own with --ask" in told.read()
