"""From records to criteria compared: a block for each scorer and the kinds of units that it prunes."""

import math
import statistics
from dataclasses import dataclass, replace

from ...curves.chart import Chart
from ...curves.curve import Curve, Mark, mark
from ...curves.dense import find_dense
from ...differences.nats import NATS, no_dense, with_nats
from ...records.kinds import named_kinds
from ...records.merging import by_place
from ...records.metrics import curve_metrics, is_accuracy
from ...records.record import Record
from .points import (
    is_quality,
    kinds_of,
    name_settings,
    one_per_point_and_kinds,
    quality_of,
    without_quality,
)


@dataclass(frozen=True)
class Block:
    """A curve's label is its criterion; the best at the middle level comes first."""

    scorer: str
    kinds: tuple[str, ...]
    curves: list[Curve]

    @property
    def name(self) -> str:
        return f"{self.scorer}, {named_kinds(self.kinds)}"

    @property
    def levels(self) -> list[float]:
        return sorted({mark.level for curve in self.curves for mark in curve.marks})

    @property
    def middle(self) -> float:
        """The lowest level harms nothing and the highest ruins everything: this one ranks."""
        return self.levels[(len(self.levels) - 1) // 2]


@dataclass(frozen=True)
class Comparison:
    """All criteria on one model and data set."""

    chart: Chart  # but its curves: they stand in the blocks
    blocks: list[Block]
    metrics: list[str]  # the first one ranks and is drawn
    judges: list[Record]  # one for each seed; their metrics tell how scores agree with the truth


def find_comparisons(records: list[Record]) -> list[Comparison]:
    """Records as they were read -> a comparison for each model and data set."""
    return [comparison(group) for group in by_place(records)]


def comparison(records: list[Record]) -> Comparison:
    points = name_settings(one_per_point_and_kinds(without_quality(records)))
    judges = [record for record in records if any(map(is_quality, record.metrics))]
    perplexity, accuracies = curve_metrics(points)
    dense, notes = find_dense([record for record in points if record.point.level == 0])
    metrics = [*([perplexity] if perplexity else []), *accuracies]
    if perplexity and dense and perplexity in dense.metrics:
        points, metrics = with_nats(points, perplexity), [NATS, *accuracies]
    elif perplexity:
        notes = [*notes, no_dense(perplexity)]
    blocks = find_blocks([record for record in points if record.point.level > 0], metrics)
    chart = Chart(
        model=records[0].point.model,
        data=records[0].point.data,
        records=[*points, *(record for record in judges if all(map(is_quality, record.metrics)))],
        dense=dense,
        curves=[],
        accuracies=accuracies,
        perplexity=perplexity,
        notes=[*notes, *broken(blocks, perplexity)],
    )
    return Comparison(chart, blocks, metrics, join(judges))


def find_blocks(records: list[Record], metrics: list[str]) -> list[Block]:
    """In the order of the records, but all blocks of a scorer together."""
    found: dict[str, dict[tuple[str, ...], list[Record]]] = {}
    for record in records:
        found.setdefault(record.point.scorer, {}).setdefault(kinds_of(record), []).append(record)
    blocks = [
        Block(scorer, kinds, find_curves(group))
        for scorer, by_kinds in found.items()
        for kinds, group in by_kinds.items()
    ]
    return [replace(block, curves=ranked(block, metrics[0])) for block in blocks] if metrics else blocks


def find_curves(records: list[Record]) -> list[Curve]:
    found: dict[str, dict[float, list[Record]]] = {}
    for record in records:
        found.setdefault(record.point.criterion, {}).setdefault(record.point.level, []).append(record)
    return [Curve(name, [mark(levels[level]) for level in sorted(levels)]) for name, levels in found.items()]


def ranked(block: Block, metric: str) -> list[Curve]:
    def badness(curve: Curve) -> tuple[float, float]:
        at = {mark.level: lower_is_better(mark, metric) for mark in curve.marks}
        return at.get(block.middle, math.inf), statistics.fmean(at.values())

    return sorted(block.curves, key=badness)


def lower_is_better(mark: Mark, metric: str) -> float:
    """The value, or less it where higher is better; what is missing or not a number is worst."""
    value = mark.metrics[metric].value if metric in mark.metrics else math.nan
    if math.isnan(value):
        return math.inf
    return -value if is_accuracy(metric) else value


def broken(blocks: list[Block], perplexity: str | None) -> list[str]:
    """Says which curves have gaps in the figure."""
    notes = []
    for block in blocks:
        for curve in block.curves:
            levels = [
                f"{mark.level:g}"
                for mark in curve.marks
                if perplexity in mark.metrics and not math.isfinite(mark.metrics[perplexity].value)
            ]
            if levels:
                where = f"{block.scorer}, {'+'.join(block.kinds)}"
                notes.append(
                    f"{curve.label} ({where}) has no finite {perplexity} at level {', '.join(levels)}."
                )
    return notes


def join(judges: list[Record]) -> list[Record]:
    """One record for each seed, of its quality metrics; of a value measured twice the last one counts."""
    by_seed: dict[int, Record] = {}
    for record in judges:
        found = {name: m for name, m in record.metrics.items() if quality_of(name)}
        earlier = by_seed[record.point.seed].metrics if record.point.seed in by_seed else {}
        by_seed[record.point.seed] = replace(record, metrics=earlier | found)
    return list(by_seed.values())
