"""The local Azure from the command line.

Run as: python -m emulator up | down | status | env
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import processes
from .certificates import ensure_certificates
from .config import ConfigError, Home, State, load_project
from .environment import shell_environment, urls
from .store import Store
from .supervisor import parts

UP_LIMIT = 120.0  # seconds until every part must answer; a first start compiles bytecode
DOWN_LIMIT = 45.0  # seconds for running requests, jobs and deployments to end; more than the parts' graces together
DESCRIPTIONS = {
    "azurite": ("blob", "Azurite: blobs and queues"),
    "mlflow": ("mlflow", "MLflow: experiments and curves"),
    "control": ("arm", "Resource Manager, Azure ML, identity, Event Grid"),
    "functions": ("functions", "the function app"),
}


def running(home: Home) -> bool:
    """Whether this checkout's local Azure has been started and not stopped."""
    state = home.load()
    return state is not None and processes.alive(state.supervisor)


def up(home: Home, event_copies: int) -> None:
    """Start everything unless it runs, and return once it is healthy."""
    with alone(home.path / "up.lock"):
        if running(home):
            status(home)
            return
        _kill_leftovers(home, home.load())
        for log in home.logs.glob("*.log"):
            if not log.stem.endswith(".previous"):
                log.replace(log.with_suffix(".previous.log"))
        # Another checkout must not choose the ports that were free a moment ago and are not bound yet.
        with alone(Path(tempfile.gettempdir()) / f"local-azure-{os.getuid()}.lock"):
            state = home.prepare()
            ensure_certificates(home.path / "certificates")
            seconds = _start(home, state, event_copies)
    print(f"The local Azure is up after {seconds:.1f} s.")
    _table(home)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait for, and hold, a lock among processes. It ends with its holder, however that ends."""
    with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another start of a local Azure to end …", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(home: Home, state: State, event_copies: int) -> float:
    """Start the supervisor; return, once every part is healthy, the seconds that it took. Raises ConfigError."""
    waiting = {part.name: part.healthy for part in parts(home, state, event_copies)}
    started = time.monotonic()
    supervisor = _detach(home, event_copies)
    # The supervisor does so too, but seconds later: until then `down` would find nothing to stop.
    state.supervisor = processes.identify(supervisor.pid)
    home.save(state)
    while waiting:
        if supervisor.poll() is not None:
            last = processes.tail(home.logs / "supervisor.log", 1)
            raise ConfigError(f"The local Azure did not start. {last}")
        if time.monotonic() - started > UP_LIMIT:
            _stop(home)
            logs = ", ".join(str(home.logs / f"{name}.log") for name in waiting)
            raise ConfigError(f"Not healthy after {UP_LIMIT:.0f} s: {', '.join(waiting)}; see {logs}.")
        waiting = {name: healthy for name, healthy in waiting.items() if not healthy()}
        time.sleep(0.1)
    return time.monotonic() - started


def _detach(home: Home, event_copies: int) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable, "-m", "emulator.supervisor", "--project", str(home.project.root / home.project.file),
        "--home", str(home.path), "--event-copies", str(event_copies),
    ]  # fmt: skip
    with (home.logs / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,  # databases and logs of all parts hold keys or data: they are this user's alone
        )


def down(home: Home) -> None:
    """Stop everything; the state stays for the next start."""
    print("The local Azure is stopped." if _stop(home) else "The local Azure is not running.")


def _stop(home: Home) -> bool:
    state = home.load()
    if state is None:
        return False
    ran = processes.alive(state.supervisor)
    if state.supervisor and ran:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(state.supervisor["pid"]), signal.SIGTERM)
        deadline = time.monotonic() + DOWN_LIMIT
        while processes.alive(state.supervisor) and time.monotonic() < deadline:
            time.sleep(0.1)
    return _kill_leftovers(home, home.load()) or ran


def _kill_leftovers(home: Home, state: State | None) -> bool:
    """End what a supervisor or a control process that was killed left running; return whether there was anything."""
    if state is None:
        return False
    # In this order: the supervisor would start its parts again, and the control process its deployments.
    killed = [processes.kill_leftover(identity) for identity in (state.supervisor, *state.processes.values())]
    if home.database.exists():
        store = Store(home.database)
        for resource in store.started():  # a job has one or several, a deployment one an instance
            left = [resource.internal.get("process"), *resource.internal.get("processes", [])]
            killed += [processes.kill_leftover(identity) for identity in left]
        store.close()
    return any(killed)


def status(home: Home) -> None:
    """Print what runs. Exits with 1 when something does not answer."""
    state = home.load()
    if state is None or not running(home):
        raise ConfigError("The local Azure is not running; start it with `make up`.")
    print("The local Azure is running.")
    _table(home)
    ill = [part.name for part in parts(home, state, 1) if not part.healthy()]
    if ill:
        raise ConfigError(f"Not answering: {', '.join(ill)}; see the logs in {home.logs}.")


def _table(home: Home) -> None:
    state = home.load()
    assert state is not None  # noqa: S101 - both callers have loaded it
    where = urls(state)
    for name in state.processes:
        key, text = DESCRIPTIONS[name]
        print(f"  {where[key]:<42} {text}")
    print(f"  logs: {_shown(home.logs)}")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def env(home: Home) -> None:
    """Print export lines for a shell: ``eval "$(python -m emulator env)"``."""
    state = home.load()
    if state is None:
        raise ConfigError("The local Azure has never been started here; start it with `make up`.")
    for name, value in shell_environment(home, state).items():
        print(f"export {name}={shlex.quote(value)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m emulator", description="A local Azure for this project.")
    parser.add_argument("command", choices=["up", "down", "status", "env"])
    parser.add_argument("--project", type=Path, default=Path("emulator.yaml"), help="default: %(default)s")
    parser.add_argument("--event-copies", type=int, default=1, help="deliver each event so often (for tests)")
    arguments = parser.parse_args()
    try:
        home = Home(load_project(arguments.project))
        match arguments.command:
            case "up":
                up(home, arguments.event_copies)
            case "down":
                down(home)
            case "status":
                status(home)
            case "env":
                env(home)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
