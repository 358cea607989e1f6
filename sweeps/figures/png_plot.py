"""From a panel of lines to matplotlib's axes."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from .leaving import in_sight, leaving, out_of_sight
from .looks import DASHES, GREY, INK, MARKERS, PALE, Look
from .panels import MANY, Line, Plot, Spot, level_look
from .png_axes import scale


def draw_plot(ax: Axes, plot: Plot, looks: Mapping[str, Look], among: Sequence[Plot]) -> None:
    """looks: of the whole figure's lines and levels. among: plots that share the axes."""
    for name in in_sight(plot):
        draw_level(ax, plot, name, looks)
    for number, words in enumerate(out_of_sight(plot)):
        place = (1.0, 1.0 - 0.07 * number)
        ax.annotate(words, place, xycoords="axes fraction", ha="right", va="top", fontsize=8, color=GREY)
    for number, line in enumerate(plot.lines):
        draw_line(ax, line, looks[line.name], zorder=3 - number / len(plot.lines))  # the first one on top
    ax.set_title(plot.title, fontsize=10, color=INK)
    scale(ax, plot, among)
    for name, x in leaving(plot).items():
        colour = looks[name].colour
        ax.plot([x], [plot.top or 0.0], marker="^", markersize=9, color=colour, clip_on=False, zorder=4)
    ax.tick_params(labelsize=9, labelbottom=True, labelleft=True)
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def draw_level(ax: Axes, plot: Plot, name: str, looks: Mapping[str, Look]) -> None:
    level = plot.levels[name]
    colour, dash = level_look(name, looks)
    ax.axhline(level.y, color=colour, linestyle=DASHES[dash], linewidth=1.2, label=name, zorder=1)
    if level.error:
        ax.axhspan(level.y - level.error, level.y + level.error, color=colour, alpha=0.07, linewidth=0)


def draw_line(ax: Axes, line: Line, look: Look, zorder: float) -> None:
    dashes = DASHES[look.dash] if line.joined else ""
    if line.start and line.joined and line.spots and math.isfinite(line.spots[0].y):
        (x, y), first = line.start, line.spots[0]
        ax.plot([x, first.x], [y, first.y], color=look.colour, linestyle=dashes, linewidth=1.5, zorder=zorder)
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
            color=look.colour,
            linestyle=dashes,
            linewidth=1.5,
            drawstyle="steps-post" if line.steps else "default",
            marker=MARKERS[look.marker] if line.marked and len(spots) < MANY else "",
            markersize=5.5,
            markerfacecolor="white" if hollow else look.colour,
            markeredgecolor=look.colour if hollow else "white",
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
