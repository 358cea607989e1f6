"""Methods at equal bytes, and the least that any loses: curve.csv, paired.csv, methods.png, .md and .html."""

from dataclasses import replace

from ..curves.chart import Chart, find_charts
from ..figures.looks import BOUNDS, first_word
from ..figures.panels import Line, Panel, Spot
from ..records.merging import one_per_point
from ..records.record import Record
from .curve import REPORT as CURVE
from .curve import nats_panel, nats_spot, of_chart
from .report import Section

LEAST = "least at equal bytes"


def sections(records: list[Record], against: str) -> list[Section]:
    return [of_chart(chart, against, rows(chart)) for chart in find_charts(one_per_point(records))]


def rows(chart: Chart) -> list[list[Panel | None]]:
    panel = nats_panel(chart)
    least = frontier(chart)
    line = Line(LEAST, least, marked=False, neutral=True, steps=True)
    return [[replace(panel, lines=[*panel.lines, line] if least else panel.lines)]]


def frontier(chart: Chart) -> list[Spot]:
    """Of what can be used, from the most bytes down: to leave more unread than one does takes the next.

    Bounds are left out, as an oracle has seen what it is asked about.
    """
    usable = [curve for curve in chart.curves if first_word(curve.label) not in BOUNDS]
    spots = [(curve.label, spot) for curve in usable for mark in curve.marks if (spot := nats_spot(mark))]
    least: list[Spot] = []
    for label, spot in sorted(spots, key=lambda one: (-one[1].x, one[1].y)):
        if not least or spot.y < least[-1].y:
            least.append(Spot(spot.x, spot.y, text=f"{label}<br>{spot.text}"))
    return [*least, Spot(0.0, least[-1].y, text="")] if least else []


REPORT = replace(CURVE, name="methods", stem="methods", title="Methods at equal bytes", sections=sections)
