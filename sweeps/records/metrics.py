"""What the names of metrics tell, and means over tasks."""

import math
import statistics
from collections.abc import Iterable

from .record import Measured, Record

MEAN_ACCURACY = "mean/acc"
GEOMETRIC_MEAN = "geometric_mean/acc"  # of the same tasks, as the paper compares criteria
MEANS = (MEAN_ACCURACY, GEOMETRIC_MEAN)
SPEED = "latency/tokens_per_second"
HEADERS = {"kl": "KL from dense", "top1": "same likeliest token %", SPEED: "tokens/s"}  # of metrics in tables


def is_accuracy(metric: str) -> bool:
    return metric.endswith("/acc")


def is_share(metric: str) -> bool:
    """Whether tables show it in per cent: normalised accuracies too, of which no mean over tasks is made."""
    return is_accuracy(metric) or metric.endswith("/acc_norm")


def is_perplexity(metric: str) -> bool:
    return metric.endswith("perplexity")


def of_text(metric: str) -> bool:
    """Whether it is a perplexity of the evaluation's own windows, and not of a task."""
    return is_perplexity(metric) and "/" not in metric


def curve_metrics(records: list[Record]) -> tuple[str | None, list[str]]:
    """The perplexity of these records, if any, and their accuracies, their means first."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    perplexity = min(filter(is_perplexity, names), key=len, default=None)
    return perplexity, sorted(filter(is_accuracy, names), key=means_first)


def means_first(metric: str) -> int:
    return MEANS.index(metric) if metric in MEANS else len(MEANS)


def with_means(record: Record, peers: Iterable[Record]) -> dict[str, Measured]:
    """The means are over the tasks that all peers have, as points must compare.

    peers: all records of the same model and data. The error of a geometric mean is carried through its
    logarithm, to first order.
    """
    peers = list(peers)
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
