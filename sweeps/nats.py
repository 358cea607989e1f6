"""The yardstick of perplexity: nats over the dense model."""

from dataclasses import replace

from sweeps.paired import dense_of, difference, per_example
from sweeps.records import Measured, Record

NATS = "nats_over_dense"  # log perplexity less the dense model's


def with_nats(records: list[Record], perplexity: str) -> list[Record]:
    """Against the dense point that is most like each. They come first of its metrics, with their samples."""
    told = []
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
        told.append(record)
    return told
