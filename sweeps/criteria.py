"""From records to criteria compared: a block for each scorer and the kinds of units that it prunes."""

import math
import statistics
from dataclasses import dataclass, replace

from sweeps.criteria_points import (
    is_quality,
    kinds_of,
    name_settings,
    quality_of,
    tidy_by_kinds,
    without_quality,
)
from sweeps.curves import Chart, Curve, Mark, find_dense, mark
from sweeps.nats import NATS, with_nats
from sweeps.points import by_place, drawn_metrics, is_accuracy
from sweeps.records import Record


@dataclass(frozen=True)
class Block:
    """A curve's label is its criterion; the best at the middle level comes first."""

    scorer: str
    kinds: tuple[str, ...]
    curves: list[Curve]

    @property
    def levels(self) -> list[float]:
        return sorted({mark.level for curve in self.curves for mark in curve.marks})

    @property
    def middle(self) -> float:
        """The lowest level harms nothing and the highest ruins everything: this one ranks."""
        return self.levels[(len(self.levels) - 1) // 2]

    def sparsity(self, mark: Mark) -> float:
        """The share that was skipped of those kinds that were to be pruned."""
        return statistics.fmean(mark.achieved.get(kind, 0.0) for kind in self.kinds)


@dataclass(frozen=True)
class Contest:
    """All criteria on one model and one data set."""

    chart: Chart  # but its curves: they stand in the blocks
    blocks: list[Block]
    metrics: list[str]  # the first one ranks and is drawn
    judges: list[Record]  # one for each seed; their metrics tell how scores agree with the truth


def find_contests(records: list[Record]) -> list[Contest]:
    """Records as they were read -> a contest for each model and data set."""
    return [contest(group) for group in by_place(records)]


def contest(records: list[Record]) -> Contest:
    points = name_settings(tidy_by_kinds(without_quality(records)))
    judges = [record for record in records if any(map(is_quality, record.metrics))]
    perplexity, accuracies = drawn_metrics(points)
    dense, notes = find_dense([record for record in points if record.point.level == 0])
    metrics = [*([perplexity] if perplexity else []), *accuracies]
    if perplexity and dense and perplexity in dense.metrics:
        points, metrics = with_nats(points, perplexity), [NATS, *accuracies]
    elif perplexity:
        notes = [*notes, f"There is no dense {perplexity} to compare with: measure sparsity.level=0 too."]
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
    return Contest(chart, blocks, metrics, join(judges))


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
