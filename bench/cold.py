"""A cold start: importing the app, which the worker does before the first request, and what the first chat pays more.

Each figure is the median of fresh processes, with warm bytecode as a deployment has it. The chat is asked in process,
of bench/chat.py's stub upstream; its extra is the first answer's time above a usual one's.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .chat import in_process
from .chat_targets import ROOT, World, world
from .measure import Measure

IMPORTS, CHATS = 9, 5  # processes, after one that warms up
IMPORT_TARGET, CHAT_TARGET = 0.5, 0.8  # seconds
TIMED_IMPORT = (
    "import time; began = time.perf_counter(); import function_app; "
    "took = time.perf_counter() - began; import sys; "
    "print(took, *(name for name in ('azure.ai.ml', 'promptflow', 'torch') if name in sys.modules))"
)


def run() -> list[Measure]:
    """Start Python again and again."""
    folder = Path(tempfile.mkdtemp(prefix="bench-cold-"))
    try:
        with world(folder) as stub:
            imports = [_import(stub) for _ in range(IMPORTS + 1)][1:]
            chats = [in_process(stub, 0, 0) for _ in range(CHATS + 1)][1:]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    imported = statistics.median(imports)
    first = statistics.median(each["first"] for each in chats)
    extra = statistics.median(each["first"] - each["usual"] for each in chats)
    return [
        Measure("import function_app", "s", imported, target=f"≤ {IMPORT_TARGET:g} s", met=imported <= IMPORT_TARGET),
        Measure("the first chat, after the import", "s", first),
        Measure("  above a usual one", "s", extra, target=f"≤ {CHAT_TARGET:g} s", met=extra <= CHAT_TARGET),
    ]


def _import(stub: World) -> float:
    """Seconds of the import in a new process. Raises RuntimeError when it brings in what it must not."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED_IMPORT],
        cwd=ROOT, env=stub.environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    seconds, *heavy = done.stdout.split()
    if heavy:
        raise RuntimeError(f"import function_app has imported {', '.join(heavy)}; it must not")
    return float(seconds)
