"""A CSV of what a figure shows: a row for each spot."""

from collections.abc import Iterable, Sequence

from ..curves.chart import Chart
from ..figures.panels import Plot
from ..files import Cell

COLUMNS = ("model", "data", "panel", "line", "x_is", "x", "y_is", "y", "stderr")


def rows_of(chart: Chart, panels: Sequence[Plot]) -> Iterable[list[Cell]]:
    """The values of COLUMNS."""
    place = chart.model, chart.data
    for panel in panels:
        for line in panel.lines:
            for spot in line.spots:
                yield [
                    *(*place, panel.title, line.name, panel.x.title, spot.x),
                    *(panel.y.title, spot.y, spot.error),
                ]
