"""From folders of run records to curve.csv, paired.csv, curve.png and report.md."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sweeps import paired_table
from sweeps.curves import Chart, find_charts
from sweeps.files import write_csv
from sweeps.points import COLUMNS, rows_of, tidy
from sweeps.records import RecordError, Records, read
from sweeps.report import write_report

log = logging.getLogger(__name__)

AGAINST = "static"  # what every contextual scorer must beat


class Rebuilt(NamedTuple):
    records: Records
    charts: list[Chart]
    figures: dict[str, Path]  # by the chart's name
    report: Path


def find_points(folders: Iterable[Path]) -> tuple[Records, list[Chart]]:
    """Everything but the files: quick, and without matplotlib."""
    found = read(folders)
    points = tidy(found.done)
    return found._replace(done=points), find_charts(points)


def rebuild(folders: Iterable[Path], out: Path, against: str = AGAINST) -> Rebuilt:
    """The same records give the same files, whatever was there before."""
    from sweeps.plot import draw, save  # matplotlib takes a second

    folders = list(folders)
    records, charts = find_points(folders)
    if not any(records):
        raise RecordError(f"no run.json of an evaluate job below {', '.join(map(str, folders))}")
    write_csv(COLUMNS, rows_of(records.done), out / "curve.csv")
    write_csv(paired_table.COLUMNS, paired_table.csv_rows(charts, against), out / "paired.csv")
    figures: dict[str, Path] = {}
    for chart in charts:
        figure = draw(chart)
        if figure is not None:
            figures[chart.name] = out / figure_name("curve", chart, charts)
            save(figure, figures[chart.name])
    if len(charts) > 1:
        (out / "curve.png").unlink(missing_ok=True)  # from when the sweep had seen one model only
    write_report(records, charts, figures, out / "report.md", against)
    log.info("points: %d, failed jobs: %d -> %s", len(records.done), len(records.failed), out / "report.md")
    return Rebuilt(records, charts, figures, out / "report.md")


def figure_name(stem: str, chart: Chart, charts: list[Chart]) -> str:
    if len(charts) == 1:
        return f"{stem}.png"
    return f"{stem}-{chart.model}-{chart.data}.png".replace("/", "-")
