"""Accuracy against speed of the same plans: latency.csv, .png, .md and .html."""

from typing import NamedTuple

from ..curves.chart import POSITIONS, Chart, chart, varying
from ..curves.curve import Mark
from ..figures.panels import Axis, Figure, Line, Plot, Spot, in_rows
from ..records.merging import by_place, one_per_point
from ..records.metrics import is_accuracy
from ..records.record import Record
from .cells import (
    axis_of,
    cell,
    hover,
    share_cells,
    share_columns,
    share_header,
)
from .paired_table import paired_tables
from .panels_csv import COLUMNS, rows_of
from .provenance import what_was_run
from .report import Report, Section, Table

FILE = "latency.csv"
TIMES, LOW, HIGH = "latency/times_dense", "latency/times_dense_low", "latency/times_dense_high"
TOKEN, ROOFLINE = "latency/token_ms", "latency/roofline"
DENSE, ALL = "dense transformers", "everything stays"  # level 0: what is faster then is the executor
SHOW = {True: "{:.3f}".format, False: "{:.2f}".format}  # an accuracy, or a perplexity
LEGEND = (
    "Of each plan its quality and its speed, by the same executor in the same process. Times dense: a "
    "token of dense transformers over a token of this, by turns; the median over rounds, and their "
    "quartiles. Roofline: bytes of weights that a dense token reads over those of this one, predictor "
    "included. Where everything stays, what is faster is the executor alone. Bytes: the share of the "
    "weight bytes that a decoded token does not read."
)


class Timed(NamedTuple):
    """A level of a curve that was timed. label: the curve's, ALL at level 0."""

    label: str
    mark: Mark

    def value(self, metric: str) -> float:
        return self.mark.metrics[metric].value


def sections(records: list[Record], against: str) -> list[Section]:
    return [of_chart(chart(group), against) for group in by_place(one_per_point(records))]


def of_chart(found: Chart, against: str) -> Section:
    """A panel for perplexity and for the first accuracy; a line for each curve."""
    marks = [Timed(curve.label, mark) for curve in found.curves for mark in curve.marks]
    if found.dense:
        marks.insert(0, Timed(ALL, found.dense))
    timed = [one for one in marks if TIMES in one.mark.metrics]
    names = [found.perplexity, *found.accuracies[:1]]
    qualities = [name for name in names if name is not None]
    panels = [panel(timed, quality) for quality in qualities]
    tables = [Table("Points", table(found, timed, qualities)), *paired_tables(found, against)]
    return Section(
        found,
        Figure(found.name, in_rows(panels)),
        LEGEND,
        [*tables, what_was_run(found)],
        {FILE: rows_of(found, panels)},
    )


def panel(timed: list[Timed], quality: str) -> Plot:
    x, y = Axis("times as fast as dense, a token"), axis_of(quality)
    measured = [one for one in timed if quality in one.mark.metrics]
    lines = []
    for label in dict.fromkeys(one.label for one in measured):
        spots = [spot(one, quality) for one in measured if one.label == label]
        if label == ALL:
            lines.append(Line(DENSE, [Spot(1.0, spots[0].y, None, DENSE)]))
        lines.append(Line(label, spots))
    return Plot(y.title, x, y, lines)


def spot(one: Timed, quality: str) -> Spot:
    value, stderr = one.mark.metrics[quality]
    lines = [f"{one.value(TOKEN):.1f} ms a token", f"{times(one)} times dense", *hover(one.mark)]
    return Spot(one.value(TIMES), value, stderr, "<br>".join(lines))


def table(found: Chart, timed: list[Timed], qualities: list[str]) -> list[list[str]]:
    """The header, then every point that was timed."""
    kinds, parts = share_columns(found.records), varying(found.records, POSITIONS)
    header = ["scorer", *parts, "nominal level", *share_header(kinds), *qualities]
    rows = [[*header, "ms a token", "times dense", "roofline"]]
    for one in timed:
        where = [one.label, *(getattr(one.mark, part) for part in parts), f"{one.mark.level:g}"]
        quality = [cell(one.mark.metrics.get(name), SHOW[is_accuracy(name)]) for name in qualities]
        speed = [f"{one.value(TOKEN):.1f}", times(one), f"{one.value(ROOFLINE):.2f}"]
        rows.append([*where, *share_cells(one.mark, kinds), *quality, *speed])
    return rows


def times(one: Timed) -> str:
    return f"{one.value(TIMES):.2f} ({one.value(LOW):.2f} to {one.value(HIGH):.2f})"


REPORT = Report("latency", "latency", "Accuracy against speed", {FILE: COLUMNS}, sections)
