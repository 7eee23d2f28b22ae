"""Run all tests: three groups, two at a time, for much of a test's time is spent waiting for a process to start.

What a group prints comes when it has ended. A word after the command chooses groups.

Run as: python -m tests [emulator] [app] [training]
"""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / ".venv-training" / "bin" / "python"
AT_A_TIME = 2
# The longest first.
GROUPS = {
    "emulator": (sys.executable, "tests/emulator"),
    "app": (sys.executable, "tests/unit", "tests/e2e", "tests/browser"),
    "training": (str(TRAINING), "tests/training"),
}


def main(names: list[str]) -> int:
    """Run the groups; return 1 when a test failed, 2 for a group that does not exist."""
    if unknown := [name for name in names if name not in GROUPS]:
        print(f"no group of tests is called {', '.join(unknown)}; there are: {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    chosen = names or list(GROUPS)
    print(f"Running the tests: {', '.join(chosen)}; each prints when it has ended.", flush=True)
    started = time.monotonic()
    ended: list[tuple[str, int]] = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        running: dict[Future[tuple[int, str]], str] = {pool.submit(_run, *GROUPS[name]): name for name in chosen}
        for done in as_completed(running):
            code, output = done.result()
            ended.append((running[done], code))
            print(f"\n===== {running[done]} =====\n{output}", flush=True)
    for name, code in ended:
        print(f"{name}: {'passed' if code == 0 else f'failed (exit code {code})'}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    return int(any(code for _, code in ended))


def _run(python: str, *paths: str) -> tuple[int, str]:
    """pytest's exit code and everything that it printed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        done = subprocess.run(
            [python, "-m", "pytest", *paths], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False
        )
        output.seek(0)
        return done.returncode, output.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
