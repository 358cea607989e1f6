"""From panels of lines to a figure."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sweeps.colours import COLOURS, INK, PALE
from sweeps.panels import Axis, Plot, names_of
from sweeps.plot import DASHES, MARKERS

MANY = 40  # spots of a line: more would hide it


def draw(panels: Sequence[Plot], title: str) -> Figure | None:
    """In rows of three, with one legend; None if no line has a spot."""
    drawn = [panel for panel in panels if any(line.spots for line in panel.lines)]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(4.6 * columns + 1.8, 3.4 * rows + 0.6), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    names = names_of(drawn)
    for ax in axes.flat[len(drawn) :]:
        ax.set_visible(False)
    for ax, panel in zip(axes.flat, drawn):
        one(ax, panel, names)
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def one(ax: Axes, panel: Plot, names: list[str]) -> None:
    for name, level in panel.levels.items():
        ax.axhline(level, color=INK, linestyle="--", linewidth=1, label=name, zorder=1)
    for line in panel.lines:
        number = names.index(line.name)
        ax.errorbar(
            [spot.x for spot in line.spots],
            [spot.y for spot in line.spots],
            yerr=[spot.error or 0.0 for spot in line.spots] if any(s.error for s in line.spots) else None,
            label=line.name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)] if len(line.spots) < MANY else "",
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)] if line.joined else "",
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
        )
    ax.set_title(panel.title, fontsize=10, color=INK)
    scale(ax, "x", panel.x)
    scale(ax, "y", panel.y)
    ax.tick_params(labelsize=9)
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def scale(ax: Axes, which: str, axis: Axis) -> None:
    ax.set(**{f"{which}label": axis.title})
    if axis.scale == "log":
        ax.set(**{f"{which}scale": "log"})
    if axis.scale == "percent":
        of = ax.xaxis if which == "x" else ax.yaxis
        of.set_major_formatter(PercentFormatter(1, decimals=0))
