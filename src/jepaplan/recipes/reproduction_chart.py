"""Success of every method on every task in one picture, intervals and the source's numbers included.

panel        a task
line         a method
dot, bar     success, and its 95 % interval; a colour for each variant
diamond      what the source reports

Where a reproduction has an axis, success is drawn over it instead, a curve for each method. Calls of the
predictor are those that were measured: what a method asks before it searches counts as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepaplan.recipes.reproduction_cells import Cell, Known

SHAPES = ("o", "s", "^", "v", "P", "X", "<", ">")
COLOURS = (
    "#1b6ca8",
    "#e07b39",
    "#3f8f5b",
    "#8b5fbf",
    "#b23a48",
    "#6b7280",
    "#111827",
    "#c2a317",
)  # told apart by colour-blind eyes
ACROSS = 4  # panels side by side
PICTURE_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jepaplan",
    "font.size": 8,
    "axes.spines.top": False,
}


def draw_success(known: Known, path: Path, axis: str = "") -> bool:
    """Write the picture `path` (.svg or .png); False, and no picture, where nothing was measured."""
    measured = [cell for cell in known.values() if cell.found]
    if not measured:
        return False
    with matplotlib.rc_context(PICTURE_SETTINGS):
        figure = _curves(measured, axis) if axis else _lines(measured)
        _explain(figure)
        save_picture(figure, path)
    return True


def save_picture(figure: Figure, path: Path) -> None:
    """Without a date the same numbers give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, facecolor="white", metadata=metadata)


def _lines(measured: Sequence[Cell]) -> Figure:
    """A panel for each task, a line for each method."""
    tasks, methods, variants = (
        list(dict.fromkeys(getattr(cell.evaluation, name) for cell in measured))
        for name in ("task", "method", "variant")
    )
    across = min(ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    height = 0.4 + len(methods) * (0.16 + 0.06 * len(variants))
    figure = Figure(figsize=(max(4.6, 1.5 + 2.0 * across), 0.3 + height * down), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(axes.flat)
    for task, panel in zip(tasks, panels, strict=False):
        _frame(panel, task, methods)
        for cell in measured:
            if cell.evaluation.task == task:
                _mark(panel, cell, methods, variants)
    for empty in panels[len(tasks) :]:
        empty.set_visible(False)
    return figure


def _curves(measured: Sequence[Cell], axis: str) -> Figure:
    """A panel for each task, a curve for each method over the axis."""
    tasks, methods = (
        list(dict.fromkeys(getattr(cell.evaluation, name) for cell in measured))
        for name in ("task", "method")
    )
    figure = Figure(figsize=(0.6 + 4.2 * len(tasks), 3.4), layout="constrained")
    axes = figure.subplots(1, len(tasks), sharex=True, sharey=True, squeeze=False)
    axes[0, 0].set(ylim=(-0.03, 1.03), ylabel="success")
    for task, panel in zip(tasks, list[Axes](axes.flat), strict=True):
        panel.set_title(task, fontsize=9, fontweight="bold")
        panel.set(xscale="log", xlabel=axis)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines["right"].set_visible(False)
        for number, method in enumerate(methods):
            _curve(
                panel,
                [c for c in measured if (c.evaluation.method, c.evaluation.task) == (method, task)],
                number,
                axis,
            )
    return figure


def _curve(panel: Axes, found: Sequence[Cell], number: int, axis: str) -> None:
    known = [(at, cell) for cell in found if (at := cell.place(axis)) is not None]
    placed = sorted(known, key=lambda pair: pair[0])
    if not placed:
        return
    at = [place for place, _ in placed]
    rates = [cell.row.success for _, cell in placed]
    colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
    panel.vlines(at, [rate.low for rate in rates], [rate.high for rate in rates], colors=colour, alpha=0.4)
    label = placed[0][1].evaluation.method
    line = "-" if number < len(COLOURS) else "--"  # where colours come round again
    (drawn,) = panel.plot(at, [rate.rate for rate in rates], shape + line, color=colour, label=label)
    drawn.set(markersize=4.2, alpha=0.85, clip_on=False)  # many lie on each other, at the very top


def _explain(figure: Figure) -> None:
    """One legend for all panels, where there is more than one kind of mark."""
    found = [panel.get_legend_handles_labels() for panel in figure.axes]
    named = {label: handle for marks in found for handle, label in zip(*marks, strict=True)}
    if len(named) > 1:
        columns = 4 if len(figure.axes) > 1 else 2  # one panel is narrow
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=columns, frameon=False)


def _frame(panel: Axes, task: str, methods: list[str]) -> None:
    panel.set_title(task, fontsize=9, fontweight="bold")
    panel.set(xlim=(-0.03, 1.03), xticks=(0, 0.5, 1), ylim=(len(methods) - 0.4, -0.6))
    panel.set_yticks(range(len(methods)), methods)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.tick_params(length=0)
    panel.spines[["right", "left"]].set_visible(False)


def _mark(panel: Axes, cell: Cell, methods: list[str], variants: list[str]) -> None:
    number = variants.index(cell.evaluation.variant)
    spread = 0.22 * (number - (len(variants) - 1) / 2)
    line, rate = methods.index(cell.evaluation.method) + spread, cell.row.success
    colour = COLOURS[number % len(COLOURS)]
    panel.plot([rate.low, rate.high], [line, line], color=colour, linewidth=1.4, alpha=0.55)
    shape = SHAPES[number % len(SHAPES)]  # told apart without colour, too
    panel.plot(rate.rate, line, shape, color=colour, markersize=3.6, label=cell.evaluation.variant or "here")
    if cell.evaluation.paper is not None:
        diamond = panel.plot(cell.evaluation.paper, line, "D", color="black", label="the source")
        diamond[0].set(markersize=3.6, fillstyle="none")
