"""Run benchmarks and print their figures.

Run as: python -m bench [NAME …] [--json FILE]
"""

import argparse
import importlib
import json
import os
import platform
import sys
import traceback
from pathlib import Path

from .measure import Measure, table

NAMES = ("loop", "emulator", "intake", "training", "thousand", "load", "latency", "chat", "batching", "cold")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    measures: list[Measure] = []
    code = 0
    for name in arguments.names or NAMES:
        try:
            measures += importlib.import_module(f"bench.{name}").run()
        except Exception:  # one broken benchmark must not hide the others' figures
            traceback.print_exc()
            code = 1
    print(table(measures))
    if arguments.json:
        arguments.json.write_text(json.dumps([m.row() for m in measures], indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
