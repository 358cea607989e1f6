"""Which method loses least at equal bytes: a row for each level of each method."""

from ..curves.chart import Chart
from ..differences.nats import NATS
from ..files import Cell
from ..reports.curve import nats_spot
from ..reports.methods import frontier

LEADERBOARD = "leaderboard"  # what W&B calls the table
COLUMNS = ("chart", "method", "level", "bytes_skipped", NATS, "stderr", "least_at_equal_bytes")


def rows_of(charts: list[Chart]) -> list[list[Cell]]:
    """The values of COLUMNS, of each chart from the most bytes skipped down; the last is 1 where no other
    method loses less and skips as much: bounds are no such method. What has no dense model beside it is left
    out."""
    rows: list[list[Cell]] = []
    for chart in charts:
        least = {(spot.x, spot.y) for spot in frontier(chart)}
        found = [
            (curve.label, mark.level, spot)
            for curve in chart.curves
            for mark in curve.marks
            if (spot := nats_spot(mark))
        ]
        for label, level, spot in sorted(found, key=lambda one: (-one[2].x, one[2].y)):
            leads = int((spot.x, spot.y) in least)
            rows.append([chart.name, label, level, spot.x, spot.y, spot.error, leads])
    return rows
