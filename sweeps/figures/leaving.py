"""What a panel does not show: where lines leave it at its top, and levels that are out of sight."""

import math

from .panels import Line, Plot


def leaving(plot: Plot) -> dict[str, float]:
    """Of each line that goes above the top, the x at which it does."""
    if not plot.top:
        return {}
    found = {line.name: leaves_at(line, plot.top) for line in plot.lines if line.joined}
    return {name: x for name, x in found.items() if x is not None}


def in_sight(plot: Plot) -> list[str]:
    """Levels that are not above the top, nor below what a log axis can show."""
    low = 0.0 if plot.y.scale == "log" else -math.inf
    return [name for name, level in plot.levels.items() if low < level.y <= (plot.top or math.inf)]


def out_of_sight(plot: Plot) -> list[str]:
    """The other levels, each with its value."""
    shown = in_sight(plot)
    return [f"{name}: {level.y:.2f}" for name, level in plot.levels.items() if name not in shown]


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
