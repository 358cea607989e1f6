"""From a panel of lines to matplotlib's axes."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from .looks import COLOURS, DASHES, GREY, INK, MARKERS, PALE, look
from .panels import Level, Line, Plot, Spot
from .png_axes import scale_x, scale_y

LEVEL_DASHES = DASHES[1:]  # solid is for lines
MANY = 40  # spots of a line: more markers would hide it


def draw_plot(ax: Axes, plot: Plot, names: list[str], among: Sequence[Plot]) -> None:
    """names: of the whole figure's lines, as they give a line its look. among: plots that share the axes."""
    for number, (name, level) in enumerate(plot.levels.items()):
        draw_level(ax, plot, name, level, number)
    for number, line in enumerate(plot.lines):
        draw_line(ax, line, names, zorder=3 - number / len(plot.lines))  # the first one on top
    ax.set_title(plot.title, fontsize=10, color=INK)
    scale_x(ax, plot.x, among)
    scale_y(ax, plot.y, among, plot.top)
    if plot.top:
        mark_leaving(ax, plot, plot.top, names)
    ax.tick_params(labelsize=9, labelbottom=True, labelleft=True)
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def draw_level(ax: Axes, plot: Plot, name: str, level: Level, number: int) -> None:
    """One that lies above the panel is a name with its value, at the top."""
    if plot.top and level.y > plot.top:
        above = [other for other, one in plot.levels.items() if one.y > plot.top]
        place = (1.0, 1.0 - 0.07 * above.index(name))
        words = f"{name}: {level.y:.2f}"
        ax.annotate(words, place, xycoords="axes fraction", ha="right", va="top", fontsize=8, color=GREY)
        return
    colour = GREY if number else INK
    dash = LEVEL_DASHES[number % len(LEVEL_DASHES)]
    ax.axhline(level.y, color=colour, linestyle=dash, linewidth=1, label=name, zorder=1)
    if level.error:
        ax.axhspan(level.y - level.error, level.y + level.error, color=colour, alpha=0.07, linewidth=0)


def draw_line(ax: Axes, line: Line, names: list[str], zorder: float) -> None:
    colour, marker, dash = look(line.name, names)
    dashes = DASHES[dash] if line.joined else ""
    if line.start and line.joined and line.spots and math.isfinite(line.spots[0].y):
        (x, y), first = line.start, line.spots[0]
        ax.plot([x, first.x], [y, first.y], color=colour, linestyle=dashes, linewidth=1.5, zorder=zorder)
    label = line.name
    for hollow in (False, True):
        spots = [spot for spot in line.spots if spot.hollow == hollow]
        if not spots:
            continue
        ax.errorbar(
            [spot.x for spot in spots],
            [spot.y if math.isfinite(spot.y) else math.nan for spot in spots],  # a gap
            yerr=bars(spots),
            label=label,
            color=colour,
            linestyle=dashes,
            linewidth=1.5,
            drawstyle="steps-post" if line.steps else "default",
            marker=MARKERS[marker] if line.marked and len(spots) < MANY else "",
            markersize=5.5,
            markerfacecolor="white" if hollow else colour,
            markeredgecolor=colour if hollow else "white",
            markeredgewidth=1.3 if hollow else 0.5,
            elinewidth=0.9,
            capsize=2,
            zorder=zorder,
        )
        label = f"_{line.name}"  # in the legend once


def bars(spots: list[Spot]) -> list[list[float]] | None:
    """Below and above each spot; None where no spot has one."""
    both = [spot.bar for spot in spots]
    return [list(side) for side in zip(*both)] if any(map(any, both)) else None


def mark_leaving(ax: Axes, plot: Plot, top: float, names: list[str]) -> None:
    """An arrow at the top where a line goes above it."""
    for line in plot.lines:
        crossing = leaves_at(line, top) if line.joined else None
        if crossing is not None and line.name in names:
            colour = COLOURS[names.index(line.name) % len(COLOURS)]
            ax.plot([crossing], [top], marker="^", markersize=9, color=colour, clip_on=False, zorder=4)


def leaves_at(line: Line, top: float) -> float | None:
    """The x at which it first crosses the top of a log axis, or None."""
    places = [*([line.start] if line.start else []), *((spot.x, spot.y) for spot in line.spots)]
    for before, (x, y) in zip([None, *places], places):
        if y > top:
            if before is None or not math.isfinite(y) or before[1] <= 0:
                return x
            start, end = math.log(before[1]), math.log(y)
            return before[0] + (math.log(top) - start) / (end - start) * (x - before[0])
    return None
