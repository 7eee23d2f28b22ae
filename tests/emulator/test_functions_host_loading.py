"""What the local Functions host refuses to load, and the sentence that it says."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from host_processes import serve_once
from hypothesis import given
from hypothesis import strategies as st

from emulator.functions_host.host_settings import AppError, parse_timespan, read_host_json
from emulator.functions_host.invoke import Invoker
from emulator.functions_host.keys import Keys
from emulator.functions_host.routes import compile_route
from emulator.functions_host.timer import Schedule

APP = "import azure.functions as func\napp = func.FunctionApp()\n"


def _load(folder: Path, **files: str) -> str:
    """Try to serve an app of these files; returns the last line of standard error, which must be the reason."""
    (folder / "host.json").write_text('{"version": "2.0"}')
    (folder / "keys.json").write_text('{"masterKey": "m", "functionKeys": {}, "systemKeys": {}}')
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    arguments = ["--app", str(folder), "--port", "0", "--keys", str(folder / "keys.json")]
    exit_code, text = serve_once(arguments, folder)
    assert exit_code == 1, text
    return text.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import azure.functions", "exactly one top-level name"),
        (APP + "again = app\n", "exactly one top-level name"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            APP + "@app.event_grid_trigger(arg_name='event')\ndef f(event: dict): pass\n",
            "'f': the eventGridTrigger binding 'event' does not match its annotation 'dict'",
        ),
        (APP + "@app.event_grid_trigger(arg_name='event')\ndef f(other): pass\n", "'f': the parameters ['other']"),
        (APP + "@app.event_grid_trigger(arg_name='event')\ndef f(event: int | str): pass\n", "invalid non-type"),
        (
            APP + "@app.blob_trigger(arg_name='b', path='c/{n}', connection='S')\ndef f(b: func.InputStream): pass\n",
            "'f': the local host does not run the trigger 'blobTrigger'",
        ),
        (
            APP + "@app.route('x')\n@app.queue_output(arg_name='out', queue_name='q', connection='S')\n"
            "def f(req: func.HttpRequest, out: func.Out[str]) -> str: pass\n",
            "'f': the local host does not support the binding 'out' of type 'queue'",
        ),
        (
            APP + "@app.queue_trigger(arg_name='m', queue_name='%NOT_SET%', connection='S')\ndef f(m: str): pass\n",
            "'f': the setting 'NOT_SET'",
        ),
        (
            APP + "@app.queue_trigger(arg_name='m', queue_name='q', connection='NOWHERE')\ndef f(m: str): pass\n",
            "'f': set NOWHERE__queueServiceUri (identity-based) or NOWHERE",
        ),
        (
            APP + "@app.timer_trigger(arg_name='t', schedule='5 minutes')\ndef f(t: func.TimerRequest): pass\n",
            "'f': the schedule '5 minutes' is not NCRONTAB",
        ),
        (APP + "@app.route('x/{id:range(1,2)}')\ndef f(req: func.HttpRequest) -> str: pass\n", "not understood"),
        (
            APP + "@app.route('x')\ndef f(req: func.HttpRequest) -> str: pass\n"
            "@app.route('y')\n@app.function_name('f')\ndef g(req: func.HttpRequest) -> str: pass\n",
            "Function f does not have a unique function name",
        ),
        (
            APP + "from azurefunctions.extensions.http.fastapi import Request\n"
            "@app.route('x')\ndef f(req: func.HttpRequest) -> str: pass\n",
            "every HTTP function must use its Request",
        ),
    ],
)
def test_a_bad_app_is_refused_with_a_sentence(tmp_path: Path, source: str, reason: str) -> None:
    last_line = _load(tmp_path, function_app=source)
    assert last_line.startswith("error: ")
    assert reason in last_line


def test_a_package_without_the_file_is_refused_loudly(tmp_path: Path) -> None:
    (tmp_path / "function_app").mkdir()
    (tmp_path / "function_app" / "__init__.py").write_text(APP)
    assert "function_app.py does not exist" in _load(tmp_path)


def test_host_json_and_keys_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"host\.json does not exist"):
        read_host_json(tmp_path)
    (tmp_path / "host.json").write_text('{"version": "2.0", "extensions": {"queues": {"visibilityTimeout": 5}}}')
    with pytest.raises(AppError, match=r"visibilityTimeout must look like hh:mm:ss, found 5"):
        read_host_json(tmp_path)
    (tmp_path / "keys.json").write_text('{"masterKey": "", "functionKeys": {}, "systemKeys": {}}')
    with pytest.raises(AppError, match="empty"):
        Keys.load(tmp_path / "keys.json")
    with pytest.raises(AppError, match="must be 1 to 32"):
        Invoker(tmp_path, {"PYTHON_THREADPOOL_THREAD_COUNT": "0"})


def test_timespans() -> None:
    assert parse_timespan("00:01:30", "x") == 90
    assert parse_timespan("1.00:00:00.5", "x") == 86400.5


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_schedule_names_its_second_first(hour: int, minute: int, second: int) -> None:
    due = Schedule(f"{second} {minute} {hour} * * *", "f").next_after(datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC))
    assert (due.hour, due.minute, due.second, due.day) == (hour, minute, second, 21)


def test_day_and_weekday_must_both_match() -> None:
    due = Schedule("0 0 0 13 * FRI", "f").next_after(datetime(2026, 1, 1, tzinfo=UTC))
    assert due == datetime(2026, 2, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    ("template", "path", "parameters"),
    [
        ("a/{id}", "/api/a/1", {"id": "1"}),
        ("a/{id}", "/api/A/1/", {"id": "1"}),
        ("a/{id}", "/api/a", None),
        ("a/{id}", "/api/a/1/2", None),
        ("a/{id?}", "/api/a", {}),
        ("a/{id:int}", "/api/a/x", None),
        ("a/{id:int}", "/api/a/-7", {"id": "-7"}),
        ("a/{*rest}", "/api/a/1/2", {"rest": "1/2"}),
        ("{a}.{b}", "/api/x.y", {"a": "x", "b": "y"}),
        ("v1.0/x", "/api/v1a0/x", None),
    ],
)
def test_route_templates(template: str, path: str, parameters: dict[str, str] | None) -> None:
    assert compile_route("api", template, None, "f").match("GET", path) == parameters
