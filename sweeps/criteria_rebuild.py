"""From folders of run records to criteria.csv, criteria.png and criteria.md."""

import logging
from collections.abc import Iterable
from pathlib import Path

from sweeps.criteria import Contest, find_contests
from sweeps.criteria_points import is_quality, kinds_of, quality_of, with_kinds
from sweeps.criteria_report import summary, write_report
from sweeps.files import Cell, write_csv
from sweeps.rebuild import Rebuilt, read_some, save_figures
from sweeps.records import Measured, Record, Records

log = logging.getLogger(__name__)

COLUMNS = (
    *("model", "data", "scorer", "kinds", "criterion", "level", "seed"),
    *("achieved_head", "achieved_neuron", "metric", "value", "stderr"),
)


def find(folders: Iterable[Path]) -> tuple[Records, list[Contest]]:
    """Everything but the files: quick, and without matplotlib."""
    records = read_some(folders)
    return records, find_contests(records.done)


def told(folders: Iterable[Path]) -> str:
    return summary(*find(folders))


def rebuild(folders: Iterable[Path], out: Path) -> Rebuilt:
    """The same records give the same files. In the points that are handed on, scorers have their kinds."""
    from sweeps.criteria_plot import draw  # matplotlib takes a second

    records, contests = find(folders)
    write_csv(COLUMNS, (row for contest in contests for row in rows_of(contest)), out / "criteria.csv")
    charts = [contest.chart for contest in contests]
    figures = save_figures("criteria", [(contest.chart, draw(contest)) for contest in contests], out)
    write_report(records, contests, figures, out / "criteria.md")
    points = [with_kinds(record) for chart in charts for record in chart.records]
    log.info("points: %d, failed jobs: %d -> %s", len(points), len(records.failed), out / "criteria.md")
    return Rebuilt(records._replace(done=points), charts, figures, out / "criteria.md")


def rows_of(contest: Contest) -> list[list[Cell]]:
    """The values of COLUMNS, seeds apart: the dense model once for each seed, quality under its criterion."""
    rows: list[list[Cell]] = []
    dense: set[tuple[int, str]] = set()
    for record in contest.chart.records:
        for name, measured in record.metrics.items():
            point = record.point
            if is_quality(name):
                continue
            if point.level > 0:
                rows.append(
                    row(record, point.scorer, "+".join(kinds_of(record)), point.criterion, name, measured)
                )
            elif (point.seed, name) not in dense:
                dense.add((point.seed, name))
                rows.append(row(record, "dense", "", "", name, measured))
    for judge in contest.judges:
        for name, measured in judge.metrics.items():
            quality = quality_of(name)
            if quality:
                metric = f"{quality.family}/{quality.statistic}"
                rows.append(row(judge, "", quality.kind, quality.criterion, metric, measured))
    return rows


def row(
    record: Record, scorer: str, kinds: str, criterion: str, metric: str, measured: Measured
) -> list[Cell]:
    """The values of COLUMNS."""
    point, achieved = record.point, record.achieved
    return [
        *(point.model, point.data, scorer, kinds, criterion, point.level, point.seed),
        *(achieved.get("head"), achieved.get("neuron"), metric, measured.value, measured.stderr),
    ]
