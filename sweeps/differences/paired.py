"""Differences of a metric, example by example."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ..records.metrics import is_perplexity
from ..records.record import Record
from .examples import examples_of, on_same_examples

Pair = tuple[Record, Record]  # a point, and the one that it is compared with


class Difference(NamedTuple):
    """values: one for each seed. stderr: of their mean, over examples; None where they were not kept."""

    values: tuple[float, ...]
    stderr: float | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


def difference(pairs: Sequence[Pair], metric: str) -> Difference | None:
    """Of a perplexity in nats. pairs: one for each seed; those that do not compare are left out."""
    compared = [pair for pair in pairs if on_same_examples(*pair, metric)]
    if not compared:
        return None
    values = tuple(less(*pair, metric) for pair in compared)
    examples = [per_example(*pair, metric) for pair in compared]
    same = len({examples_of(ours, metric) for ours, _ in compared}) == 1
    return Difference(values, standard_error([one for one in examples if one], same, len(compared)))


def mean_of(differences: Sequence[Difference]) -> Difference:
    """Of several tasks, each with the same seeds. The examples of one have nothing to do with another's."""
    values = zip(*(one.values for one in differences), strict=True)
    errors = [one.stderr for one in differences if one.stderr is not None]
    stderr = math.hypot(*errors) / len(errors) if len(errors) == len(differences) else None
    return Difference(tuple(map(statistics.fmean, values)), stderr)


def less(ours: Record, theirs: Record, metric: str) -> float:
    first, second = ours.metrics[metric].value, theirs.metrics[metric].value
    return nats(first, second) if is_perplexity(metric) else first - second


def nats(perplexity: float, other: float) -> float:
    ratio = perplexity / other if other else math.nan
    return math.log(ratio) if ratio > 0 else math.nan


def per_example(ours: Record, theirs: Record, metric: str) -> list[float] | None:
    first, second = ours.samples.get(metric), theirs.samples.get(metric)
    if not first or not second or len(first) != len(second):
        return None
    return [one - other for one, other in zip(first, second)]


def standard_error(examples: Sequence[list[float]], same: bool, seeds: int) -> float | None:
    """Of the mean over seeds and examples; of the same examples, seeds are averaged first."""
    if len(examples) < seeds:
        return None
    if same:
        examples = [[statistics.fmean(values) for values in zip(*examples, strict=True)]]
    errors = [
        statistics.stdev(one) / math.sqrt(len(one)) if len(one) > 1 and all(map(math.isfinite, one)) else None
        for one in examples
    ]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(known) if len(known) == len(errors) else None
