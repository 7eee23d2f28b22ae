"""The pictures of an evaluation: curves of the loss and a histogram of the records' lengths. Legible without colour."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[Sequence[float]]  # pairs [step, loss]

SIZE = (7.0, 4.0)  # inches
DOTS_PER_INCH = 120
SMOOTHED_FROM = 60  # points; fewer are drawn as they are
MARKED_UP_TO = 40  # points; more markers would run together


def draw_loss(path: Path, training: Curve, held_out: Curve, points: dict[str, float]) -> None:
    """Draw the loss (nats a token) over the steps; ``held_out`` may be empty.

    ``points``: the exam's loss of each model by its name, drawn as levels across the picture.
    """
    figure, axes = _figure()
    steps, losses = [step for step, _ in training], [loss for _, loss in training]
    if len(losses) >= SMOOTHED_FROM:
        axes.plot(steps, losses, color="0.75", linewidth=0.8)
        axes.plot(steps, _smooth(losses), color="black", linewidth=1.6, label="training (smoothed)")
    else:
        axes.plot(steps, losses, color="black", linewidth=1.6, label="training")
    if held_out:
        marker = "o" if len(held_out) <= MARKED_UP_TO else None
        xs, ys = [step for step, _ in held_out], [loss for _, loss in held_out]
        axes.plot(xs, ys, color="0.25", linestyle="--", marker=marker, markersize=4, label="held out")
    for (name, loss), style in zip(points.items(), (":", "-.", (0, (1, 4))), strict=False):
        axes.axhline(loss, color="0.45", linestyle=style, linewidth=1.2, label=f"{name}, held out: {loss:.2f}")
    every = [*losses, *(loss for _, loss in held_out), *points.values()]
    # On a linear scale the first steps leave nothing to see of the last ones.
    if every and min(every) > 0 and max(every) / min(every) > 10:
        axes.set_yscale("log")
        _plain_ticks(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss, nats a token")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def draw_lengths(path: Path, training: Sequence[int], held_out: Sequence[int], max_length: int) -> None:
    """Draw how many examples have how many tokens; ``held_out`` may be empty. ``max_length``: where they are cut."""
    import numpy

    figure, axes = _figure()
    longest = max([*training, *held_out], default=1)
    bins = numpy.linspace(0, longest + 1, min(40, longest + 2))
    axes.hist(training, bins=bins, color="0.8", edgecolor="0.3", linewidth=0.6, label=f"training ({len(training):,})")
    if held_out:
        axes.hist(
            held_out, bins=bins, histtype="step", color="black", linewidth=1.6, label=f"held out ({len(held_out):,})"
        )
    if longest >= max_length:
        axes.axvline(max_length, color="black", linestyle="--", linewidth=1, label=f"max_length = {max_length:,}")
    axes.set_xlabel("tokens of an example")
    axes.set_ylabel("examples")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _figure() -> tuple["Figure", "Axes"]:
    # Without pyplot there is no window and no global state: savefig draws with Agg.
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes: Any = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours, a twentieth of all to either side."""
    reach = len(values) // 40
    windows = [values[max(0, n - reach) : n + reach + 1] for n in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _plain_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
