"""How far scorers are ahead of another one, task by task: task_gap.csv, .png, .md and .html."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from sweeps import study
from sweeps.curves import Chart, find_charts
from sweeps.paired_table import NATS, Row, find_rows, heading, shown
from sweeps.panels import Axis, Line, Plot, Spot
from sweeps.points import tidy
from sweeps.rebuild import Rebuilt
from sweeps.records import Record
from sweeps.reports import AGAINST
from sweeps.study import Study

LEGEND = (
    "Accuracy less that of the scorer in the title, on the same questions; above 0 is better. ± and the bars "
    "are the standard error of the mean difference over questions, of a mean over tasks combined from "
    "theirs; in brackets are the lowest and the highest of the seeds, if several."
)


def rebuild(folders: Iterable[Path], out: Path, against: str = AGAINST) -> Rebuilt:
    find = partial(find_studies, against=against)
    return study.write("task_gap", "Accuracy task by task", LEGEND, find, folders, out, against)


def summary(folders: Iterable[Path], against: str = AGAINST) -> str:
    return study.told(partial(find_studies, against=against), folders)


def find_studies(records: list[Record], against: str) -> list[Study]:
    return [of_chart(chart, against) for chart in find_charts(tidy(records))]


def of_chart(chart: Chart, against: str) -> Study:
    """A panel and a table for each scorer; every task is a line of its own."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in find_rows(chart, against):
        if row.metric != NATS and row.against.split(",")[0].split(" ")[0] == against:
            rows.setdefault((row.scorer, row.against), []).append(row)
    panels, tables = [], []
    x, y = Axis("level: share of units removed", "percent"), Axis("difference of accuracy", "percent")
    for (scorer, other), found in rows.items():
        title = f"{scorer} less {other}"
        metrics = list(dict.fromkeys(row.metric for row in found))
        lines = [Line(metric, [spot(row) for row in found if row.metric == metric]) for metric in metrics]
        panels.append(Plot(title, x, y, lines, {"no difference": 0.0}))
        tables.append((title, table(found, metrics)))
    return Study(chart, panels, tables)


def spot(row: Row) -> Spot:
    told = f"level {row.level:g}<br>{shown(row)} points"
    return Spot(row.level, row.difference.mean, row.difference.stderr, told)


def table(rows: list[Row], metrics: list[str]) -> list[list[str]]:
    """The header, then a row for each level."""
    cells = {(row.level, row.metric): shown(row) for row in rows}
    levels = sorted({row.level for row in rows})
    header = ["level", *(heading(metric).rstrip(",") for metric in metrics)]
    return [header, *([f"{at:g}", *(cells.get((at, name), "-") for name in metrics)] for at in levels)]
