"""Run all tests in groups, two at a time, for much of a test's time is spent waiting for a process to start.

What a group prints comes when it has ended. A word after the command chooses groups.

Run as: python -m tests [emulator-1] [emulator-2] [e2e] [unit] [chaos] [training]
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / ".venv-training" / "bin" / "python"
AT_A_TIME = 2
EMULATOR = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "emulator").glob("test_*.py"))
# The longest first.
GROUPS: dict[str, tuple[str, ...]] = {
    "emulator-1": (sys.executable, *EMULATOR[::2], "-m", "not last"),
    "emulator-2": (sys.executable, *EMULATOR[1::2], "-m", "not last"),
    "e2e": (sys.executable, "tests/e2e"),
    "training": (str(TRAINING), "tests/training"),
    "unit": (sys.executable, "tests/unit", "tests/browser"),
    "chaos": (sys.executable, "tests/chaos"),
}
# What looks back on both halves of the emulator's tests; they leave what they have seen in the folder JUDGED.
LAST = (sys.executable, "tests/emulator", "-m", "last")


def main(names: list[str]) -> int:
    """Run the groups; return 1 when a test failed, 2 for a group that does not exist."""
    if unknown := [name for name in names if name not in GROUPS]:
        print(f"no group of tests is called {', '.join(unknown)}; there are: {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    chosen = names or list(GROUPS)
    print(f"Running the tests: {', '.join(chosen)}; each prints when it has ended.", flush=True)
    started = time.monotonic()
    ended: list[tuple[str, int]] = []
    with tempfile.TemporaryDirectory() as judged:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            running: dict[Future[tuple[int, str]], str] = {
                pool.submit(_run, judged, *GROUPS[name]): name for name in chosen
            }
            for done in as_completed(running):
                ended.append(_show(running[done], *done.result()))
        if {"emulator-1", "emulator-2"} <= set(chosen):
            ended.append(_show("emulator, looking back", *_run(judged, *LAST)))
    for name, code in ended:
        print(f"{name}: {'passed' if code == 0 else f'failed (exit code {code})'}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    return int(any(code for _, code in ended))


def _show(name: str, code: int, output: str) -> tuple[str, int]:
    print(f"\n===== {name} =====\n{output}", flush=True)
    return name, code


def _run(judged: str, python: str, *arguments: str) -> tuple[int, str]:
    """pytest's exit code and everything that it printed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        done = subprocess.run(
            [python, "-m", "pytest", *arguments],
            cwd=ROOT,
            env={**os.environ, "JUDGED": judged},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output.seek(0)
        return done.returncode, output.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
