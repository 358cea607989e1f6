"""The dense model, which every scorer may have measured."""

import math
from dataclasses import replace

from ..records.metrics import is_accuracy, is_perplexity, of_text
from ..records.record import Record
from .curve import Mark, mark

WHOLE = "all"  # `scored`: every position


def find_dense(records: list[Record]) -> tuple[Mark | None, list[str]]:
    """records: at level 0. Once per seed is enough, if they agree; where it was scored whole, it is that."""
    notes: list[str] = []
    texts = [record for record in records if any(map(of_text, record.metrics))]
    if len({record.point.scored for record in texts}) > 1:
        notes.append(
            "Points are scored at different positions, as those that are decided at the prompt leave it out: "
            "compare their perplexity only with the dense model's at the same positions, as nats over dense "
            "and differences do."
        )
    by_seed: dict[int, Record] = {}
    for record in sorted(records, key=lambda record: record.point.scored != WHOLE):
        first = by_seed.setdefault(record.point.seed, record)
        notes += disagreements(first, record)
        by_seed[record.point.seed] = replace(first, metrics=record.metrics | first.metrics)
    return (mark(list(by_seed.values())) if by_seed else None), notes


def disagreements(first: Record, other: Record) -> list[str]:
    """Of what both measured alike; seconds never agree."""
    notes = []
    for name in filter(other.metrics.__contains__, first.metrics):
        elsewhere = of_text(name) and first.point.scored != other.point.scored
        if elsewhere or not (is_accuracy(name) or is_perplexity(name)):
            continue
        ours, theirs = first.metrics[name].value, other.metrics[name].value
        if not math.isclose(ours, theirs, rel_tol=1e-3):
            notes.append(
                f"Level 0 is not one model: {name} is {ours:.6g} for {first.point.scorer} and "
                f"{theirs:.6g} for {other.point.scorer}, both with seed {first.point.seed}; "
                "the first is called dense here."
            )
    return notes
