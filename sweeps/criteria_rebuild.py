"""From folders of run records to criteria.csv, criteria.png, criteria.md and criteria.html."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from sweeps.criteria import Contest, find_contests
from sweeps.criteria_points import is_quality, kinds_of, quality_of, with_kinds
from sweeps.criteria_report import section, told
from sweeps.files import Cell, write_csv
from sweeps.hover import criteria_panels
from sweeps.rebuild import Part, Rebuilt, read_some, write_parts
from sweeps.records import Measured, Record, Records
from sweeps.reports import AGAINST

COLUMNS = (
    *("model", "data", "scorer", "kinds", "criterion", "level", "seed"),
    *("achieved_head", "achieved_neuron", "metric", "value", "stderr"),
)


def find(folders: Iterable[Path]) -> tuple[Records, list[Contest]]:
    """Everything but the files: quick, and without matplotlib."""
    records = read_some(folders)
    return records, find_contests(records.done)


def summary(folders: Iterable[Path], against: str = AGAINST) -> str:
    return told(*find(folders))


def rebuild(folders: Iterable[Path], out: Path, against: str = AGAINST) -> Rebuilt:
    """The same records give the same files. In the points that are handed on, scorers have their kinds.

    Every criterion is compared with all others, so `against` says nothing here.
    """
    from sweeps.criteria_plot import draw  # matplotlib takes a second

    records, contests = find(folders)
    write_csv(COLUMNS, (row for contest in contests for row in rows_of(contest)), out / "criteria.csv")
    parts = [
        Part(contest.chart, draw(contest), criteria_panels(contest), partial(section, contest, folder=out))
        for contest in contests
    ]
    rebuilt = write_parts("criteria", "Pruning criteria compared", records, parts, out)
    points = [with_kinds(record) for record in rebuilt.records.done]
    return rebuilt._replace(records=records._replace(done=points))


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
