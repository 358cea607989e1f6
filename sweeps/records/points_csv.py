"""curve.csv: a row for each point and metric, seeds apart."""

from ..files import Cell
from .kinds import KINDS
from .record import Record

COLUMNS = (
    *("model", "data", "criterion", "scorer", "decided_at", "scope", "tokens", "scored", "seed", "level"),
    *("bytes_skipped", "bytes_skipped_of_layers", *(f"achieved_{kind}" for kind in KINDS)),
    *("metric", "value", "stderr"),
)


def rows_of(records: list[Record]) -> list[list[Cell]]:
    """The values of COLUMNS."""
    return [
        [
            *(point.model, point.data, point.criterion, point.scorer, point.decided_at, point.scope),
            *(point.tokens, point.scored, point.seed, point.level, *shares_of(record)),
            *(metric, measured.value, measured.stderr),
        ]
        for record in records
        for point in [record.point]
        for metric, measured in record.metrics.items()
    ]


def shares_of(record: Record) -> list[Cell]:
    """bytes_skipped, bytes_skipped_of_layers and the achieved share of each of KINDS."""
    return [record.bytes.skipped, record.bytes.skipped_of_layers, *map(record.achieved.get, KINDS)]
