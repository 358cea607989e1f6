"""What lies above a panel: where lines leave it, and levels that are out of sight."""

import math

from .panels import Line, Plot


def leaving(plot: Plot) -> dict[str, float]:
    """Of each line that goes above the top, the x at which it does."""
    if not plot.top:
        return {}
    found = {line.name: leaves_at(line, plot.top) for line in plot.lines if line.joined}
    return {name: x for name, x in found.items() if x is not None}


def out_of_sight(plot: Plot) -> list[str]:
    """Levels above the top, each with its value."""
    top = plot.top or math.inf
    return [f"{name}: {level.y:.2f}" for name, level in plot.levels.items() if level.y > top]


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
