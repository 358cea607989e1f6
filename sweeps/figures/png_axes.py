"""The scales of a panel: its limits and ticks."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from .panels import Axis, Plot

LINEAR = 0.01  # nats; what is below is noise, and has a linear scale that reaches down to zero
TICKS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WIDE, NARROW = 60, 26  # letters below a panel
FEW = 6  # places on a log axis that are all named


def scale_x(ax: Axes, axis: Axis, among: Sequence[Plot]) -> None:
    ax.set_xlabel(textwrap.fill(axis.title, NARROW if len(among) > 1 else WIDE), fontsize=9)
    places = [spot.x for plot in among for line in plot.lines for spot in line.spots]
    if axis.scale == "log" and places:
        ax.set_xscale("log")
        ax.set_xlim(min(places) / 1.5, max(places) * 1.5)
        whole = sorted({x for x in places if x == round(x)})
        counts = len(whole) == len(set(places)) <= FEW
        ax.xaxis.set_major_locator(FixedLocator(whole) if counts else LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    elif axis.scale == "percent":
        low, high = min([0.0, *places]), max([0.0, *places])
        margin = 0.04 * (high - low) or 0.04
        ax.set_xlim(low - margin, high + margin)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def scale_y(ax: Axes, axis: Axis, among: Sequence[Plot], top: float | None) -> None:
    ax.set_ylabel(axis.title, fontsize=9)
    values = [value for plot in among for value in plot.heights()]
    if axis.scale == "percent":
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    elif axis.scale == "nats":
        ax.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
        ax.set_ylim(1.3 * min([*values, -0.1 * LINEAR]), 1.3 * max([*values, LINEAR]))
        ax.yaxis.set_major_locator(FixedLocator(sorted({sign * tick for tick in TICKS for sign in (1, -1)})))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    elif axis.scale == "log":
        log_scale(ax, [value for value in values if value > 0], top or math.inf)


def log_scale(ax: Axes, values: Sequence[float], top: float) -> None:
    """Up to `top` where something lies above it."""
    drawn = [value for value in values if value <= top]
    if not drawn:
        return  # nothing finite; a log axis would have no limits
    ax.set_yscale("log", nonpositive="clip")
    low, high = min(drawn) / 1.15, top if max(values) > top else max(drawn) * 1.15
    ax.set_ylim(low, high)
    steps = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    ax.yaxis.set_major_locator(
        LogLocator(subs=steps) if high / low > 6 else MaxNLocator(7, steps=[1, 2, 5, 10])
    )
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}"))
