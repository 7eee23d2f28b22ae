"""Play many schedules against one local Azure; print each that fails with how to play it again.

Run as: python -m tests.chaos [--seed 0] [--schedules 200] [--trace]
"""

import argparse
import logging
import signal
import sys
import time

from .running import local_world, play

REPORT_EVERY = 20  # schedules: a line a minute or two


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule (default: %(default)s)")
    parser.add_argument("--schedules", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--trace", action="store_true", help="print what happened in each")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the local Azure is stopped
    failed, invocations, began = [], 0, time.monotonic()
    with local_world() as world:
        for seed in range(options.seed, options.seed + options.schedules):
            since = time.monotonic()
            played = play(seed, world)
            invocations += played.invocations
            if options.trace:
                print("\n".join(played.trace))
            if played.violations:
                failed.append(seed)
                print(f"seed {seed} failed ({played.schedule.in_words}): {'; '.join(played.violations)}")
                print(f"  play it again: make chaos SEED={seed} SCHEDULES=1 TRACE=1", flush=True)
            elif options.trace:
                print(f"seed {seed} holds, {time.monotonic() - since:.1f} s")
            if (done := seed - options.seed + 1) % REPORT_EVERY == 0:
                print(
                    f"{done} of {options.schedules} played, {len(failed)} failed, {time.monotonic() - began:.0f} s",
                    flush=True,
                )
    seconds = time.monotonic() - began
    print(
        f"{options.schedules} schedules from seed {options.seed}, {invocations} invocations, {seconds:.0f} s"
        f" ({seconds / options.schedules:.1f} s each): {f'{len(failed)} failed: {failed}' if failed else 'all hold'}"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
