"""criteria.csv."""

from ...files import Cell
from ...records.kinds import KINDS
from ...records.points_csv import shares_of
from ...records.record import Measured, Record
from .blocks import Comparison
from .points import is_quality, kinds_word, quality_of

COLUMNS = (
    *("model", "data", "scorer", "kinds", "criterion", "tokens", "scored", "level", "seed"),
    *("bytes_skipped", "bytes_skipped_of_layers", *(f"achieved_{kind}" for kind in KINDS)),
    *("metric", "value", "stderr"),
)


def rows_of(comparison: Comparison) -> list[list[Cell]]:
    """The values of COLUMNS, seeds apart: the dense model once for each seed, quality under its criterion."""
    rows: list[list[Cell]] = []
    dense: set[tuple[int, str]] = set()
    for record in comparison.chart.records:
        point = record.point
        for name, measured in record.metrics.items():
            if is_quality(name):
                continue
            if point.level > 0:
                rows.append(row(record, point.scorer, kinds_word(record), point.criterion, name, measured))
            elif (point.seed, name) not in dense:
                dense.add((point.seed, name))
                rows.append(row(record, "dense", "", "", name, measured))
    for judge in comparison.judges:
        for name, measured in judge.metrics.items():
            quality = quality_of(name)
            if quality:
                metric = f"{quality.family}/{quality.statistic}"
                rows.append(row(judge, "", quality.kind, quality.criterion, metric, measured))
    return rows


def row(
    record: Record, scorer: str, kinds: str, criterion: str, metric: str, measured: Measured
) -> list[Cell]:
    point = record.point
    return [
        *(point.model, point.data, scorer, kinds, criterion, point.tokens, point.scored),
        *(point.level, point.seed, *shares_of(record), metric, measured.value, measured.stderr),
    ]
