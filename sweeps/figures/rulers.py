"""What an axis shows, and which of its numbers are written: the same in the PNG and on the page."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import LogLocator, MaxNLocator

from .panels import Axis, Plot, Scale, Spot

LINEAR, LINEAR_ROOM = 0.01, 0.5  # nats; what is below is noise, and has a linear scale that goes through zero
NATS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FEW, MANY = 6, 7  # places on a log axis that are all named; numbers that there is room for
MARGIN = 0.04  # of what is shown, at both ends


class Ruler(NamedTuple):
    """low, high: the ends. ticks: with what is written beside them. All in the unit of the data."""

    scale: Scale
    low: float
    high: float
    ticks: list[tuple[float, str]]

    def place(self, value: float) -> float:
        """Where it stands on a linear axis, as a page has for nats."""
        if self.scale != "nats":
            return value
        return float(SymmetricalLogTransform(10, LINEAR, LINEAR_ROOM).transform([value])[0])


def ruler_x(axis: Axis, among: Sequence[Plot]) -> Ruler:
    """among: plots that share the axis."""
    places = [spot.x for plot in among for line in plot.lines for spot in line.spots]
    places += [line.start[0] for plot in among for line in plot.lines if line.start]
    if axis.scale == "log":
        low, high = min(places, default=1.0) / 1.5, max(places, default=1.0) * 1.5
        whole = sorted({x for x in places if x == round(x)})
        named = whole if len(whole) == len(set(places)) <= FEW else log_ticks(low, high)
        return Ruler("log", low, high, written(named))
    return straight(axis.scale, [0.0, *places] if axis.scale == "percent" else places)


def ruler_y(axis: Axis, among: Sequence[Plot]) -> Ruler:
    """Up to `top` of a panel on a log axis where something lies above it."""
    values = [value for plot in among for value in plot.heights()]
    if axis.scale == "nats":
        low, high = 1.3 * min([*values, -0.1 * LINEAR]), 1.3 * max([*values, LINEAR])
        ticks = sorted({sign * tick for tick in NATS for sign in (1, -1) if low <= sign * tick <= high})
        return Ruler("nats", low, high, written(ticks))
    reach = [end for plot in among for end in reaches(plot)]
    if axis.scale != "log":
        return straight(axis.scale, reach)
    top = min((plot.top for plot in among if plot.top), default=math.inf)
    drawn = [value for value in values if 0 < value <= top]
    if not drawn:
        return Ruler("log", 1.0, 10.0, written([1.0, 10.0]))  # nothing finite: an axis must end somewhere
    inside = [end for end in reach if min(drawn) / 3 < end <= min(top, 3 * max(drawn))]  # bars that fit
    low, high = min([*drawn, *inside]), max([*drawn, *inside])
    margin = (high / low) ** MARGIN if high > low else 1 + MARGIN
    low, high = low / margin, top if max(values) > top else high * margin
    return Ruler("log", low, high, written(log_ticks(low, high)))


def reaches(plot: Plot) -> Iterable[float]:
    """The ends of all bars."""
    for line in plot.lines:
        for spot in line.spots:
            yield from ends_of(spot)
    for level in plot.levels.values():
        yield from (level.y - (level.error or 0.0), level.y + (level.error or 0.0))


def ends_of(spot: Spot) -> list[float]:
    below, above = spot.bar
    return [end for end in (spot.y - below, spot.y + above) if math.isfinite(end)]


def straight(scale: Scale, values: Sequence[float]) -> Ruler:
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    margin = MARGIN * (high - low) or MARGIN * (abs(high) or 1.0)
    low, high = low - margin, high + margin
    ticks = [t for t in MaxNLocator(MANY, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= t <= high]
    return Ruler(scale, low, high, written(ticks, scale == "percent"))


def log_ticks(low: float, high: float) -> list[float]:
    """50, 100, 200; powers of ten alone where these are many, round numbers where they are two or less."""
    ratio = high / low
    ticks = LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 300 else (1.0,)).tick_values(low, high)
    inside = [float(tick) for tick in ticks if low <= tick <= high]
    if len(inside) < 3:
        ticks = MaxNLocator(MANY, steps=[1, 2, 5, 10]).tick_values(low, high)
        inside = [float(tick) for tick in ticks if low <= tick <= high and tick > 0]
    return inside


def written(ticks: Sequence[float], percent: bool = False) -> list[tuple[float, str]]:
    """No two look alike: as many digits as that takes."""
    scaled = [100 * tick if percent else tick for tick in ticks]
    exact = [round(tick, 10) + 0.0 for tick in scaled]  # 0.30000000000000004, and no -0
    mark = " %" if percent else ""
    return [(tick, f"{short(number)}{mark}") for tick, number in zip(ticks, exact)]


def short(number: float) -> str:
    return f"{number:,.0f}" if number == round(number) and abs(number) < 1e7 else f"{number:.6g}"
