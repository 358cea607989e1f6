"""From rulers to the axes of matplotlib."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis as Drawn
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .panels import Plot
from .rulers import LINEAR, LINEAR_ROOM, ruler_x, ruler_y

WIDE, NARROW = 60, 26  # letters below a panel
FEW = 4  # ticks that a narrow panel has room for


def scale(ax: Axes, plot: Plot, among: Sequence[Plot]) -> None:
    """among: plots that share the axes."""
    x, y = ruler_x(plot.x, among), ruler_y(plot.y, among)
    ax.set_xlabel(textwrap.fill(plot.x.title, NARROW if len(among) > 1 else WIDE), fontsize=9)
    ax.set_ylabel(textwrap.fill(plot.y.title, NARROW if len(among) > 1 else WIDE), fontsize=9)
    ax.set_xscale("log" if x.scale == "log" else "linear")
    if y.scale == "nats":
        ax.set_yscale("symlog", linthresh=LINEAR, linscale=LINEAR_ROOM)
    elif y.scale == "log":
        ax.set_yscale("log", nonpositive="clip")
    ax.set_xlim(x.low, x.high)
    ax.set_ylim(y.low, y.high)
    narrow = len(among) > 1 and len(x.ticks) > FEW
    write_ticks(ax.xaxis, x.ticks[:: 2 if narrow else 1])
    write_ticks(ax.yaxis, y.ticks)


def write_ticks(axis: Drawn, ticks: Sequence[tuple[float, str]]) -> None:
    axis.set_major_locator(FixedLocator([place for place, _ in ticks]))
    axis.set_major_formatter(FixedFormatter([text for _, text in ticks]))
    axis.set_minor_locator(NullLocator())
