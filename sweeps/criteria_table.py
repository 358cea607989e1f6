"""From compared criteria to rows of text."""

import math
import statistics
from collections.abc import Iterable

from sweeps.criteria import Block, lower_is_better
from sweeps.criteria_points import quality_of
from sweeps.curves import mark
from sweeps.nats import NATS
from sweeps.points import GEOMETRIC_MEAN, MEAN_ACCURACY, is_accuracy
from sweeps.records import Measured, Record
from sweeps.table import cell, percent, perplexity

PLURAL = {"head": "heads", "neuron": "neurons"}
STATISTICS = {"spearman": "Spearman", "recall@50": "recall@50"}
RANKS = "spearman"
MISSING = "-"


def block_name(block: Block) -> str:
    return f"{block.scorer}, {kinds_name(block.kinds)}"


def kinds_name(kinds: Iterable[str]) -> str:
    return " and ".join(PLURAL.get(kind, kind) for kind in kinds)


def metric_name(metric: str) -> str:
    if is_accuracy(metric):
        means = {MEAN_ACCURACY: "mean accuracy", GEOMETRIC_MEAN: "geometric mean"}
        return f"{means.get(metric, metric)} %"
    return "nats" if metric == NATS else metric


def shown(measured: Measured | None, metric: str) -> str:
    if metric == NATS and measured is not None:
        value = round(measured.value, 3) + 0.0  # no -0.000
        return f"{'' if value < 0 else '+'}{cell(Measured(value, measured.stderr), '{:.3f}'.format)}"
    return cell(measured, percent if is_accuracy(metric) else perplexity)


def rows_of(block: Block, metrics: list[str], bold: str = "") -> list[list[str]]:
    """The header, a row for each criterion, and the shares that were skipped; `bold` goes about the best."""
    levels = block.levels
    columns = [column(block, metric, level, bold) for metric in metrics for level in levels]
    names = ["criterion", *(curve.label for curve in block.curves)]
    rows = [list(row) for row in zip(names, *columns)]
    for kind in PLURAL:
        shares = [skipped(block, kind, level) for level in levels]
        rows.append([f"{PLURAL[kind]} skipped %", *shares, *[""] * (len(columns) - len(levels))])
    return rows


def column(block: Block, metric: str, level: float, bold: str) -> list[str]:
    marks = [next((mark for mark in curve.marks if mark.level == level), None) for curve in block.curves]
    cells = [shown(mark.metrics.get(metric), metric) if mark else MISSING for mark in marks]
    order = [lower_is_better(mark, metric) if mark else math.inf for mark in marks]
    return [f"{metric_name(metric)} at {level:g}", *emphasized(cells, order, bold)]


def emphasized(cells: list[str], order: list[float], bold: str) -> list[str]:
    """The lowest in bold, with those that read the same; none where all do, or nothing is finite."""
    best = cells[order.index(min(order))] if order and math.isfinite(min(order)) else None
    if best is None or len(set(cells)) == 1:
        return cells
    return [f"{bold}{text}{bold}" if text == best else text for text in cells]


def skipped(block: Block, kind: str, level: float) -> str:
    """A range where criteria differ, as they may if all layers are ranked together."""
    shares = [
        percent(mark.achieved[kind])
        for curve in block.curves
        for mark in curve.marks
        if mark.level == level and kind in mark.achieved
    ]
    if not shares:
        return MISSING
    low, high = min(shares, key=float), max(shares, key=float)
    return low if low == high else f"{low} to {high}"


def quality_rows(judges: list[Record], which: str, bold: str = "") -> list[list[str]]:
    """How the scores of each criterion agree with the truth; nothing where `which` was not measured."""
    found: dict[str, dict[tuple[str, str], Measured]] = {}
    for name, measured in (mark(judges).metrics if judges else {}).items():
        quality = quality_of(name)
        if quality and quality.family == which:
            found.setdefault(quality.criterion, {})[quality.kind, quality.statistic] = measured
    if not found:
        return []
    names = sorted(found, key=lambda name: short_of_1(m for key, m in found[name].items() if key[1] == RANKS))
    columns = [["criterion", *names]]
    for kind in PLURAL:
        for statistic in STATISTICS:
            values = [found[name].get((kind, statistic)) for name in names]
            cells = [cell(measured, "{:.3f}".format) for measured in values]
            order = [short_of_1([measured] if measured else []) for measured in values]
            columns.append([f"{PLURAL[kind]}: {STATISTICS[statistic]}", *emphasized(cells, order, bold)])
    return [list(row) for row in zip(*columns)]


def short_of_1(measured: Iterable[Measured]) -> float:
    """How far the mean of those that are numbers stays below 1; without any, infinitely far."""
    values = [one.value for one in measured if math.isfinite(one.value)]
    return 1 - statistics.fmean(values) if values else math.inf
