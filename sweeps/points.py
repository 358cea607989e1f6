"""From records to one record per point, and their CSV."""

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sweeps.files import Cell
from sweeps.records import Measured, Point, Record

log = logging.getLogger(__name__)

MEAN_ACCURACY = "mean/acc"
GEOMETRIC_MEAN = "geometric_mean/acc"  # of the same tasks, as the paper compares criteria
MEANS = (MEAN_ACCURACY, GEOMETRIC_MEAN)
COLUMNS = (
    *("model", "data", "criterion", "scorer", "decided_at", "scope", "seed", "level"),
    *("achieved_head", "achieved_neuron", "metric", "value", "stderr"),
)
# overrides that do not make another curve: in the point already, or about where, what and how to log
UNTOLD = ("seed", "sparsity.level", "measure", "sweep", "launch", "tags", "debug", "task_name")
UNTOLD_GROUPS = ("hydra", "logger", "paths", "callbacks")


def tidy(records: Iterable[Record]) -> list[Record]:
    """One record per point. Settings that vary and are not in the point go into the scorer's name."""
    named = name_variants(list(records))
    once: dict[Point, Record] = {}
    for record in named:
        earlier = once.get(record.point)
        # a second sweep may measure what the first did not; of a value measured twice the last one counts
        once[record.point] = joined(earlier, record) if earlier else record
    if len(once) < len(named):
        log.info("%d records repeat a point; the last one counts", len(named) - len(once))
    return [replace(record, metrics=with_means(record, once.values())) for record in once.values()]


def tidy_by(word_of: Callable[[Record], str], records: Iterable[Record], told: Sequence[str]) -> list[Record]:
    """One record per point and `word_of` it, which no Point has and the scorer's name has from here on.

    told: overrides that the point and its word tell already, or that change nothing.
    """
    records = list(records)
    overrides = {record.file: record.overrides for record in records}
    untold = [
        replace(record, overrides=tuple(one for one in record.overrides if split(one)[0] not in told))
        for record in (with_word(record, word_of(record)) for record in records)
    ]
    return [replace(record, overrides=overrides[record.file]) for record in tidy(untold)]


def with_word(record: Record, word: str) -> Record:
    scorer = f"{record.point.scorer} {word}" if word else record.point.scorer
    return replace(record, point=replace(record.point, scorer=scorer))


def without_word(record: Record, word: str) -> Record:
    scorer = record.point.scorer.replace(f" {word}", "", 1) if word else record.point.scorer
    return replace(record, point=replace(record.point, scorer=scorer))


def joined(earlier: Record, later: Record) -> Record:
    samples = {name: values for name, values in earlier.samples.items() if name not in later.metrics}
    content = {name: known for name, known in earlier.content.items() if name not in later.metrics}
    return replace(
        later,
        metrics=earlier.metrics | later.metrics,
        samples=samples | later.samples,
        content=content | later.content,
    )


def name_variants(records: list[Record]) -> list[Record]:
    """Adds the overrides that differ in a curve to its scorer's name, lest a sweep of them pass for seeds."""
    told = [dict(filter(tells, map(split, record.overrides))) for record in records]
    by_curve: dict[Point, list[dict[str, str]]] = {}
    for record, overrides in zip(records, told):
        by_curve.setdefault(curve_of(record.point), []).append(overrides)
    varied = {
        key
        for group in by_curve.values()
        for key in {key for overrides in group for key in overrides}
        if len({overrides.get(key) for overrides in group}) > 1
    }
    renamed = []
    for record, overrides in zip(records, told):
        words = [
            record.point.scorer,
            *(f"{key}={overrides[key]}" for key in sorted(varied & overrides.keys())),
        ]
        renamed.append(replace(record, point=replace(record.point, scorer=" ".join(words))))
    return renamed


def split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def tells(override: tuple[str, str]) -> bool:
    return override[0] not in UNTOLD and override[0].split(".")[0].split("/")[0] not in UNTOLD_GROUPS


def curve_of(point: Point) -> Point:
    return replace(point, level=0.0, seed=0)


def with_means(record: Record, records: Iterable[Record]) -> dict[str, Measured]:
    """The means are over the tasks that all records of this model and data have: points must compare.

    The error of a geometric mean is carried through its logarithm, to first order.
    """
    peers = [peer for peer in records if place_of(peer) == place_of(record)]
    tasks = [
        name for name in record.metrics if is_accuracy(name) and all(name in peer.metrics for peer in peers)
    ]
    if len(tasks) < 2:
        return record.metrics
    values = [record.metrics[name].value for name in tasks]
    errors = [stderr for name in tasks if (stderr := record.metrics[name].stderr) is not None]
    known = len(errors) == len(tasks)
    stderr = math.hypot(*errors) / len(tasks) if known else None
    geometric = math.prod(values) ** (1 / len(values))
    relative = [error / value for error, value in zip(errors, values) if value]
    spread = geometric * math.hypot(*relative) / len(tasks) if known and geometric else None
    means = {
        MEAN_ACCURACY: Measured(statistics.fmean(values), stderr),
        GEOMETRIC_MEAN: Measured(geometric, spread),
    }
    return {**record.metrics, **means}


def is_accuracy(metric: str) -> bool:
    return metric.endswith("/acc")


def is_perplexity(metric: str) -> bool:
    return metric.endswith("perplexity")


def place_of(record: Record) -> tuple[str, str]:
    return record.point.model, record.point.data


def by_place(records: Iterable[Record]) -> list[list[Record]]:
    """A group for each model and data set, in the order of the records."""
    places: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        places.setdefault(place_of(record), []).append(record)
    return list(places.values())


def drawn_metrics(records: list[Record]) -> tuple[str | None, list[str]]:
    """The perplexity of these records, if any, and their accuracies, their means first."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    perplexity = min(filter(is_perplexity, names), key=len, default=None)
    return perplexity, sorted(filter(is_accuracy, names), key=order)


def order(metric: str) -> int:
    return MEANS.index(metric) if metric in MEANS else len(MEANS)


def rows_of(records: list[Record]) -> list[list[Cell]]:
    """The values of COLUMNS, for each point and metric, seeds apart."""
    return [
        [
            *(point.model, point.data, point.criterion, point.scorer, point.decided_at, point.scope),
            *(point.seed, point.level, record.achieved.get("head"), record.achieved.get("neuron")),
            *(metric, measured.value, measured.stderr),
        ]
        for record in records
        for point in [record.point]
        for metric, measured in record.metrics.items()
    ]
