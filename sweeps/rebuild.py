"""From folders of run records to curve.csv, paired.csv, curve.png, report.md and report.html."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sweeps import paired_table, table
from sweeps.curves import Chart, find_charts
from sweeps.files import write_csv
from sweeps.hover import curve_panels
from sweeps.page import write_page
from sweeps.panels import Panel
from sweeps.points import COLUMNS, rows_of, tidy
from sweeps.records import RecordError, Records, read
from sweeps.report import section, write_sections
from sweeps.reports import AGAINST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class Rebuilt(NamedTuple):
    records: Records
    charts: list[Chart]
    figures: dict[str, Path]  # by the chart's name
    report: Path
    page: Path


def find_points(folders: Iterable[Path]) -> tuple[Records, list[Chart]]:
    """Everything but the files: quick, and without matplotlib."""
    found = read_some(folders)
    points = tidy(found.done)
    return found._replace(done=points), find_charts(points)


def summary(folders: Iterable[Path], against: str = AGAINST) -> str:
    return table.summary(*find_points(folders))


def rebuild(folders: Iterable[Path], out: Path, against: str = AGAINST) -> Rebuilt:
    """The same records give the same files, whatever was there before."""
    from sweeps.plot import draw  # matplotlib takes a second

    records, charts = find_points(folders)
    write_csv(COLUMNS, rows_of(records.done), out / "curve.csv")
    write_csv(paired_table.COLUMNS, paired_table.csv_rows(charts, against), out / "paired.csv")
    parts = [
        Part(
            chart,
            draw(chart),
            curve_panels(chart),
            partial(section, chart, folder=out, against=against),
        )
        for chart in charts
    ]
    return write_parts("curve", f"{len(records.done)} points", records, parts, out, "report")


def read_some(folders: Iterable[Path]) -> Records:
    folders = list(folders)
    records = read(folders)
    if not any(records):
        raise RecordError(f"no run.json of an evaluate job below {', '.join(map(str, folders))}")
    return records


class Part(NamedTuple):
    """What a report has of one model and data set. section: the file of its figure, if any -> lines."""

    chart: Chart
    figure: "Figure | None"
    panels: Sequence[Panel]  # the same, for the page
    section: Callable[[Path | None], list[str]]


def write_parts(
    stem: str, title: str, records: Records, parts: list[Part], out: Path, report: str | None = None
) -> Rebuilt:
    """<stem>.png of each part, and <report>.md and .html, by default of the same stem.

    The points that are handed on are those of the charts.
    """
    charts, file = [part.chart for part in parts], out / f"{report or stem}.md"
    figures = save_figures(stem, [(part.chart, part.figure) for part in parts], out)
    sections = [part.section(figures.get(part.chart.name)) for part in parts]
    write_sections(title, charts, sections, records, file)
    page = file.with_suffix(".html")
    drawn = {figures[part.chart.name].name: part.panels for part in parts if part.chart.name in figures}
    write_page(file, drawn, page)
    points = [record for chart in charts for record in chart.records]
    log.info("points: %d, failed jobs: %d -> %s", len(points), len(records.failed), page)
    return Rebuilt(records._replace(done=points), charts, figures, file, page)


def save_figures(stem: str, drawn: list[tuple[Chart, "Figure | None"]], out: Path) -> dict[str, Path]:
    """The file of each chart's name that has a figure."""
    from sweeps.plot import save  # matplotlib takes a second

    charts = [chart for chart, _ in drawn]
    files: dict[str, Path] = {}
    for chart, figure in drawn:
        if figure is not None:
            files[chart.name] = out / figure_name(stem, chart, charts)
            save(figure, files[chart.name])
    if len(charts) > 1:
        (out / f"{stem}.png").unlink(missing_ok=True)  # from when the sweep had seen one model only
    return files


def figure_name(stem: str, chart: Chart, charts: list[Chart]) -> str:
    if len(charts) == 1:
        return f"{stem}.png"
    return f"{stem}-{chart.model}-{chart.data}.png".replace("/", "-")
