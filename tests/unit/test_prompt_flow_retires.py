"""The day Prompt Flow is gone, one file changes: the chat works without it, with the class that the docs give."""

import os
import re
import subprocess
import sys
from pathlib import Path

UNIT = Path(__file__).parent


def test_the_chat_passes_its_tests_without_prompt_flow() -> None:
    tests = [*map(str, (UNIT / "test_flow_context.py", UNIT / "test_flow_filter.py", UNIT / "test_chat.py"))]
    # Of test_chat.py what a stock client sees; the rest is about the host, keys and Prompt Flow itself.
    chosen = "test_flow_context or test_flow_filter or stock_client"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "without_prompt_flow", *tests, "-k", chosen],
        capture_output=True, text=True, cwd=UNIT.parents[1], env={**os.environ, "PYTHONPATH": str(UNIT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 30


def test_only_the_nodes_know_of_prompt_flow() -> None:
    flow = UNIT.parents[1] / "flow"
    knowing = {file.name for file in flow.rglob("*.py") if "from promptflow" in file.read_text()}
    assert knowing == {"prepare.py", "call_endpoint.py", "finish.py", "score_answer.py", "log_metrics.py"}
    app = UNIT.parents[1] / "function_app"
    assert [file.name for file in app.rglob("*.py") if "from promptflow" in file.read_text()] == ["flow_runner.py"]
