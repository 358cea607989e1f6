"""The yardstick of perplexity: nats over the dense model."""

from collections.abc import Sequence
from dataclasses import replace

from ..records.record import Measured, Record
from .paired import Difference, difference, per_example
from .references import dense_of

NATS = "nats_over_dense"  # log perplexity less the dense model's


def over_dense(points: Sequence[Record], records: Sequence[Record], perplexity: str) -> Difference | None:
    """points: alike but for the seed, among records that have the dense ones."""
    pairs = [(record, dense) for record in points if (dense := dense_of(record, records))]
    return difference(pairs, perplexity)


def lacking_nats(records: Sequence[Record], perplexity: str) -> list[str]:
    """Says which points have no nats, and why."""
    if not any(record.point.level == 0 and perplexity in record.metrics for record in records):
        return [no_dense(perplexity)]
    lost = [
        f"{record.point.scorer} at {record.point.level:g}, seed {record.point.seed}"
        for record in records
        if perplexity in record.metrics and not over_dense([record], records, perplexity)
    ]
    if not lost:
        return []
    return [f"Measured on other windows than the dense model, and left out: {'; '.join(lost)}."]


def no_dense(perplexity: str) -> str:
    return f"There is no dense {perplexity} to compare with: measure sparsity.level=0 too."


def with_nats(records: list[Record], perplexity: str) -> list[Record]:
    """Against the dense point that is most like each. They come first of its metrics, with their samples."""
    found = []
    for record in records:
        dense = dense_of(record, records)
        over = difference([(record, dense)], perplexity) if dense else None
        if dense and over:
            windows = per_example(record, dense, perplexity)
            record = replace(
                record,
                metrics={NATS: Measured(over.mean, over.stderr), **record.metrics},
                samples=record.samples | ({NATS: windows} if windows else {}),
            )
        found.append(record)
    return found
