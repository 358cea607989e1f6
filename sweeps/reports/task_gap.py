"""How far scorers are ahead of another one, task by task: task_gap.csv, .png, .md and .html."""

from ..curves.chart import POSITIONS, Chart, find_charts, varying
from ..figures.panels import Axis, Figure, Level, Line, Plot, Spot, in_rows
from ..records.merging import one_per_point
from ..records.record import Record
from .cells import BYTES, MISSING, percent
from .paired_table import NATS, Row, find_rows, heading, metric_difference, paired_tables
from .panels_csv import COLUMNS, rows_of
from .provenance import what_was_run
from .report import Report, Section, Table

FILE = "task_gap.csv"
LEGEND = (
    "Accuracy less that of the scorer in the title at the same nominal level, on the same questions; "
    "above 0 is better. The two may leave different shares of the weight bytes unread: see the columns of"
    " bytes. ± and the bars are the standard error of the mean difference over questions, of a mean over "
    "tasks combined from theirs; in brackets are the lowest and the highest of the seeds, if several."
)


def sections(records: list[Record], against: str) -> list[Section]:
    return [of_chart(chart, against) for chart in find_charts(one_per_point(records))]


def of_chart(chart: Chart, against: str) -> Section:
    """A panel and a table for each scorer; every task is a line of its own."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in find_rows(chart, against):
        if row.metric != NATS and row.against.split(",")[0].split(" ")[0] == against:
            rows.setdefault((row.scorer, row.against), []).append(row)
    panels, tables = [], []
    y = Axis("difference of accuracy", "percent")
    for (scorer, other), found in rows.items():
        title = f"{scorer} less {other}"
        metrics = list(dict.fromkeys(row.metric for row in found))
        lines = [Line(metric, [spot(row) for row in found if row.metric == metric]) for metric in metrics]
        panels.append(Plot(title, BYTES, y, lines, {"no difference": Level(0.0)}))
        tables.append(Table(f"{title}, at equal nominal level", table(chart, found, metrics)))
    return Section(
        chart,
        Figure(chart.name, in_rows(panels)),
        LEGEND,
        [*tables, *paired_tables(chart, against), what_was_run(chart)],
        {FILE: rows_of(chart, panels)},
    )


def spot(row: Row) -> Spot:
    text = (
        f"{metric_difference(row)} points<br>nominal level {row.level:g}<br>"
        f"weight bytes not read {percent(row.bytes)} %, by {row.against} {percent(row.against_bytes)} %"
    )
    return Spot(row.bytes, row.difference.mean, row.difference.stderr, text)


def table(chart: Chart, rows: list[Row], metrics: list[str]) -> list[list[str]]:
    """The header, then a row for each level."""
    cells = {(row.level, row.metric): metric_difference(row) for row in rows}
    levels = {row.level: row for row in sorted(rows, key=lambda row: row.level)}
    parts = varying(chart.records, POSITIONS)
    header = ["nominal level", *parts, "bytes %", f"bytes % of {rows[0].against}"]
    found = [[*header, *(heading(metric).rstrip(",") for metric in metrics)]]
    for level, row in levels.items():
        where = [f"{level:g}", *(getattr(row.point, part) for part in parts)]
        shares = [percent(row.bytes), percent(row.against_bytes)]
        found.append([*where, *shares, *(cells.get((level, name), MISSING) for name in metrics)])
    return found


REPORT = Report("task_gap", "task_gap", "Accuracy task by task", {FILE: COLUMNS}, sections)
