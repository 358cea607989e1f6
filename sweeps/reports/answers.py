"""One sentence that says what came out of a sweep."""

import math
from collections.abc import Mapping
from itertools import pairwise

from ..curves.chart import Chart
from ..curves.curve import Curve, Mark
from ..figures.looks import BOUNDS, first_word

STEP = 0.1  # of the shares of bytes that are spoken of
NAMED = 3  # the best; and the bounds, and `static`
BASELINE = "static"


def at_equal_bytes(chart: Chart) -> str:
    """What the best lose, read off the lines between their points; empty where nothing compares.

    A line from dense to the first point is no measurement: it counts where there are no others.
    """
    lines = {curve.label: line for curve in chart.curves if len(line := lost(curve, bool(chart.dense))) > 1}
    share = common_share(lines)
    if not share:
        return ""
    values = {label: value for label, line in lines.items() if (value := between(line, share)) is not None}
    measured = {label for label in values if lines[label][bool(chart.dense)][0] <= share}
    values = {label: value for label, value in values.items() if label in measured or not measured}
    ranked = sorted(values, key=values.__getitem__)
    rivals = [label for label in ranked if first_word(label) not in BOUNDS]
    named = [label for n, label in enumerate(rivals) if n < NAMED or first_word(label) == BASELINE]
    bounds = [label for label in ranked if first_word(label) in BOUNDS]
    if not named:
        return ""
    words = (
        f"At {100 * share:.0f} % of the weight bytes unread {named[0]} loses {nats(values[named[0]])} nats"
    )
    words += "".join(f"; {label} {nats(values[label])}" for label in named[1:])
    beside = f" ({'; '.join(f'{label} {nats(values[label])}' for label in bounds)})" if bounds else ""
    return f"{words}{beside}."


def lost(curve: Curve, has_dense: bool) -> list[tuple[float, float]]:
    """(share of bytes, nats over dense), by the share."""
    found = [(mark.bytes.skipped, value) for mark in curve.marks if (value := nats_of(mark)) is not None]
    return sorted([*([(0.0, 0.0)] if has_dense else []), *found]) if found else []


def nats_of(mark: Mark) -> float | None:
    over = mark.over_dense
    return over.value if over and math.isfinite(over.value) else None


def common_share(lines: Mapping[str, list[tuple[float, float]]]) -> float:
    """The largest round share that half of the lines reach; 0 if there is none."""
    reached = sorted((line[-1][0] for line in lines.values()), reverse=True)
    if not reached:
        return 0.0
    half = reached[(len(reached) - 1) // 2]
    step = STEP if half >= STEP else STEP / 2
    return max(math.floor(half / step + 1e-9) * step, 0.0)


def between(line: list[tuple[float, float]], share: float) -> float | None:
    """None where the line does not reach it."""
    for (x, y), (end, value) in pairwise(line):
        if x <= share <= end:
            return y + (value - y) * (share - x) / (end - x) if end > x else value
    return None


def nats(value: float) -> str:
    return f"{value + 0.0:.2f}"
