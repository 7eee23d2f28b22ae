"""How often the job tells where it is: some twenty times, and in a long run each minute."""

from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from training import progress


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def lines_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, steps: int, seconds: float
) -> list[dict[str, str]]:
    """Let a trainer log each of ``steps`` steps of ``seconds``; return the fields of each line."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    watched = progress.Progress(progress.Tracking())
    state = TrainerState(max_steps=steps, is_world_process_zero=True)
    args = SimpleNamespace(world_size=1, learning_rate=1.0)
    watched.on_train_begin(args, state)  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        clock.now += seconds
        state.global_step, state.num_input_tokens_seen = step, 100 * step
        watched.on_log(args, state, TrainerControl(), {"loss": float(step), "learning_rate": 0.5})  # type: ignore[arg-type]
    printed = capsys.readouterr().out.splitlines()
    return [dict(pair.split("=", 1) for pair in line.split()[1:]) for line in printed]


def test_a_short_run_tells_about_twenty_times(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = lines_of(capsys, monkeypatch, steps=1000, seconds=0.1)
    assert 20 <= len(lines) <= 22
    assert [lines[0]["step"], lines[-1]["step"]] == ["1", "1000"]
    assert lines[1]["loss"] == "26.5000"  # the mean of the steps 2 to 51
    assert lines[1]["tokens_per_second"] == "1000"
    assert lines[1]["eta_seconds"] == "95"


def test_a_long_run_tells_each_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(lines_of(capsys, monkeypatch, steps=600, seconds=20)) == pytest.approx(200, abs=2)


def test_one_process_logs_by_the_clock_and_several_only_by_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    watched = progress.Progress(progress.Tracking())
    clock.now = 61.0
    asked = {}
    for world_size in (1, 2):
        control = TrainerControl()
        watched.on_step_end(SimpleNamespace(world_size=world_size), TrainerState(max_steps=9), control)  # type: ignore[arg-type]
        asked[world_size] = control.should_log
    assert asked == {1: True, 2: False}


def test_the_last_step_is_told_even_if_no_log_falls_on_it() -> None:
    control = TrainerControl()
    state = TrainerState(max_steps=9, global_step=9)
    progress.Progress(progress.Tracking()).on_step_end(SimpleNamespace(world_size=2), state, control)  # type: ignore[arg-type]
    assert control.should_log
