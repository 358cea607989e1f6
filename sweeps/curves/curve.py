"""A curve, and what one of its levels is over seeds."""

import math
import statistics
from dataclasses import dataclass

from ..records.kinds import kinds_in
from ..records.record import Bytes, Measured, Record


@dataclass(frozen=True)
class Mark:
    """One level of a curve. Spread of a metric: over `seeds` if they are several, else the measure's own.

    bytes, achieved: means over seeds. over_dense: nats, where dense was measured on the same examples.
    """

    level: float
    bytes: Bytes
    achieved: dict[str, float]
    metrics: dict[str, Measured]
    seeds: tuple[int, ...]
    tokens: str
    scored: str
    over_dense: Measured | None = None


@dataclass(frozen=True)
class Curve:
    label: str
    marks: list[Mark]  # by level; the dense model is not among them


def mark(records: list[Record]) -> Mark:
    """Records that differ in nothing but the seed -> their mean."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    first = records[0].point
    return Mark(
        level=first.level,
        bytes=mean_bytes(records),
        achieved=mean_shares([record.achieved for record in records]),
        metrics={n: over_seeds([r.metrics[n] for r in records if n in r.metrics]) for n in names},
        seeds=tuple(sorted(record.point.seed for record in records)),
        tokens=first.tokens,
        scored=first.scored,
    )


def mean_bytes(records: list[Record]) -> Bytes:
    return Bytes(
        statistics.fmean(record.bytes.skipped for record in records),
        statistics.fmean(record.bytes.skipped_of_layers for record in records),
        mean_shares([record.bytes.by_kind for record in records]),
        statistics.fmean(record.bytes.added for record in records),
    )


def mean_shares(shares: list[dict[str, float]]) -> dict[str, float]:
    return {kind: statistics.fmean(of[kind] for of in shares if kind in of) for kind in kinds_in(shares)}


def over_seeds(measured: list[Measured]) -> Measured:
    if len(measured) == 1:
        return measured[0]
    values = [one.value for one in measured]
    spread = statistics.stdev(values) if all(map(math.isfinite, values)) else None
    return Measured(statistics.fmean(values), spread)
