"""From panels and their tables to a CSV, a figure, a report and a page: what is no curve over levels."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sweeps.curves import Chart
from sweeps.files import Cell, write_csv
from sweeps.markdown import aligned
from sweeps.panels import Plot
from sweeps.rebuild import Part, Rebuilt, read_some, write_parts
from sweeps.records import Record, Records
from sweeps.report import closing, opening, titled
from sweeps.table import unfinished

COLUMNS = ("model", "data", "panel", "line", "x_is", "x", "y_is", "y", "stderr")


class Study(NamedTuple):
    """All of one model and data set. tables: each with its title, the header first."""

    chart: Chart
    panels: Sequence[Plot]
    tables: Sequence[tuple[str, list[list[str]]]]


Find = Callable[[list[Record]], list[Study]]  # records as they were read -> those of each model and data set


def write(
    stem: str, title: str, legend: str, find: Find, folders: Iterable[Path], out: Path, against: str
) -> Rebuilt:
    """<stem>.csv, .png, .md and .html. The same records give the same files."""
    from sweeps.panels_plot import draw  # matplotlib takes a second

    records, studies = read(find, folders)
    write_csv(COLUMNS, (row for study in studies for row in rows_of(study)), out / f"{stem}.csv")
    parts = [
        Part(
            study.chart,
            draw(study.panels, study.chart.name),
            study.panels,
            partial(section, study, stem, legend, folder=out, against=against),
        )
        for study in studies
    ]
    return write_parts(stem, title, records, parts, out)


def told(find: Find, folders: Iterable[Path]) -> str:
    """For the console."""
    records, studies = read(find, folders)
    lines: list[str] = []
    for study in studies:
        lines += ["", study.chart.name, *study.chart.notes]
        for title, rows in study.tables:
            lines += ["", title, *aligned(rows)]
    return "\n".join([*lines, *unfinished(records)])


def read(find: Find, folders: Iterable[Path]) -> tuple[Records, list[Study]]:
    records = read_some(folders)
    return records, find(records.done)


def rows_of(study: Study) -> list[list[Cell]]:
    """The values of COLUMNS."""
    place = study.chart.model, study.chart.data
    return [
        [*place, panel.title, line.name, panel.x.title, spot.x, panel.y.title, spot.y, spot.error]
        for panel in study.panels
        for line in panel.lines
        for spot in line.spots
    ]


def section(
    study: Study, stem: str, legend: str, figure: Path | None, folder: Path, against: str
) -> list[str]:
    return [
        *opening(study.chart, stem, legend, figure, folder),
        *titled(study.tables),
        *closing(study.chart, against),
    ]
