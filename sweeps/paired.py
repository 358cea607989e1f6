"""Differences between points that were measured on the same examples."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from sweeps.points import is_perplexity
from sweeps.records import Record

DENSE = "dense"  # in place of a scorer's name: the dense model
# settings.measure: which of them draw the examples of a metric; the rest is of lm-eval's tasks
DRAWS = {
    "perplexity": ("windows", "tokens", "prompt_share", "seed"),
    "choices": ("questions", "options", "context_tokens", "continuation_tokens", "seed"),
}
DRAWS_TASKS = ("limit", "num_fewshot", "seed")

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
    compared = [pair for pair in pairs if compare(*pair, metric)]
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


def compare(ours: Record, theirs: Record, metric: str) -> bool:
    """Whether both have it, of the same examples."""
    both = metric in ours.metrics and metric in theirs.metrics
    # older records do not tell
    known = {one.content[metric] for one in (ours, theirs) if metric in one.content}
    return both and examples_of(ours, metric) == examples_of(theirs, metric) and len(known) < 2


def examples_of(record: Record, metric: str) -> tuple:
    """What decides them, as far as a record tells."""
    measure = record.settings["measure"]
    text = is_perplexity(metric) and "/" not in metric  # else of a task
    family = "perplexity" if text else metric.split("/")[0]
    drawn = [measure.get(name) for name in DRAWS.get(family, DRAWS_TASKS)]
    if family in DRAWS and measure.get("text"):  # not that of the data; older records know of no other
        drawn += [measure["text"], measure.get("column")]
    return record.point.model, record.point.data, *drawn, text and leaves_out_prompts(record)


def leaves_out_prompts(record: Record) -> bool:
    """Plans that are decided at the prompt leave it out of the loss, those of the dense model too."""
    return record.point.decided_at == "prompt"


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


def dense_of(record: Record, records: Sequence[Record]) -> Record | None:
    """The dense point that is most like this one: above all, its loss leaves out prompts if ours does."""

    def likeness(other: Record) -> tuple[bool, ...]:
        alike = leaves_out_prompts(other) == leaves_out_prompts(record)
        return (
            alike,
            other.point.seed == record.point.seed,
            other.point.decided_at == record.point.decided_at,
        )

    return max((other for other in records if other.point.level == 0), key=likeness, default=None)


def reference_of(record: Record, records: Sequence[Record], against: str) -> Record | None:
    """Of the points of the scorer `against` at this level and with this seed, the one that is most alike."""
    if against == DENSE:
        return dense_of(record, records)

    def likeness(other: Record) -> int:
        names = ("criterion", "decided_at", "scope")
        return sum(getattr(other.point, name) == getattr(record.point, name) for name in names)

    named = [
        other
        for other in records
        if against in (other.point.scorer, other.point.scorer.split(" ")[0])
        and other is not record
        and other.point.level == record.point.level
        and other.point.seed == record.point.seed
    ]
    return max(named, key=likeness, default=None)
