"""From compared criteria to tables."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from ...curves.curve import Mark, mark
from ...records.kinds import KINDS, kinds_in, plural
from ...records.record import Measured, Record
from ..cells import MISSING, cell, metric_cell, metric_name, percent
from ..report import Table
from .blocks import Block, lower_is_better
from .points import quality_of

STATISTICS = {"spearman": "Spearman", "recall@50": "recall@50"}
RANKS = "spearman"
# a column of a table: its header, its cells, and of each how far it is from the best
Column = tuple[str, list[str], list[float]]


def block_table(block: Block, metrics: list[str], title: str, console_metrics: int) -> Table:
    """The header, a row for each criterion, and the shares that were skipped. metrics: best first."""
    columns = [column(block, metric, level) for metric in metrics for level in block.levels]
    table, best = laid_out([curve.label for curve in block.curves], columns)
    empty = [""] * (len(columns) - len(block.levels))
    for name, share_of in shares(block).items():
        table.append([name, *(ranged(block, share_of, level) for level in block.levels), *empty])
    console_columns = 1 + len(block.levels) * console_metrics if console_metrics else 0
    return Table(title, table, best, console_columns)


def column(block: Block, metric: str, level: float) -> Column:
    marks = [next((mark for mark in curve.marks if mark.level == level), None) for curve in block.curves]
    cells = [metric_cell(mark.metrics.get(metric), metric) if mark else MISSING for mark in marks]
    badness = [lower_is_better(mark, metric) if mark else math.inf for mark in marks]
    return f"{metric_name(metric)} at {level:g}", cells, badness


def laid_out(
    names: list[str], columns: Sequence[Column]
) -> tuple[list[list[str]], frozenset[tuple[int, int]]]:
    """(rows with the header first, the best cells of each column)"""
    rows = [["criterion", *(header for header, _, _ in columns)]]
    rows += [[name, *(cells[n] for _, cells, _ in columns)] for n, name in enumerate(names)]
    best = {
        (row + 1, n + 1) for n, (_, cells, badness) in enumerate(columns) for row in best_of(cells, badness)
    }
    return rows, frozenset(best)


def best_of(cells: list[str], badness: list[float]) -> list[int]:
    """The lowest, with those that read the same; none where all do, or nothing is finite."""
    best = cells[badness.index(min(badness))] if badness and math.isfinite(min(badness)) else None
    if best is None or len(set(cells)) == 1:
        return []
    return [number for number, text in enumerate(cells) if text == best]


def shares(block: Block) -> dict[str, Callable[[Mark], float | None]]:
    """Of weight bytes that are not read, and of each kind that is skipped."""
    kinds = kinds_in(mark.achieved for curve in block.curves for mark in curve.marks)
    found: dict[str, Callable[[Mark], float | None]] = {"bytes not read %": lambda mark: mark.bytes.skipped}
    for kind in kinds:
        found[f"{plural(kind)} skipped %"] = lambda mark, kind=kind: mark.achieved.get(kind)  # type: ignore[misc]
    return found


def ranged(block: Block, share_of: Callable[[Mark], float | None], level: float) -> str:
    """A range where criteria differ, as they may if all layers are ranked together."""
    found = [
        percent(share)
        for curve in block.curves
        for mark in curve.marks
        if mark.level == level and (share := share_of(mark)) is not None
    ]
    if not found:
        return MISSING
    low, high = min(found, key=float), max(found, key=float)
    return low if low == high else f"{low} to {high}"


def quality_tables(judges: list[Record], which: str, title: str) -> list[Table]:
    """How the scores of each criterion agree with the truth; nothing where `which` was not measured."""
    found: dict[str, dict[tuple[str, str], Measured]] = {}
    for name, measured in (mark(judges).metrics if judges else {}).items():
        quality = quality_of(name)
        if quality and quality.family == which:
            found.setdefault(quality.criterion, {})[quality.kind, quality.statistic] = measured
    if not found:
        return []
    names = sorted(found, key=lambda name: short_of_1(m for key, m in found[name].items() if key[1] == RANKS))
    measured_kinds = {kind for of in found.values() for kind, _ in of}
    columns: list[Column] = []
    for kind in filter(measured_kinds.__contains__, KINDS):
        for statistic, words in STATISTICS.items():
            values = [found[name].get((kind, statistic)) for name in names]
            cells = [cell(measured, "{:.3f}".format) for measured in values]
            badness = [short_of_1([measured] if measured else []) for measured in values]
            columns.append((f"{plural(kind)}: {words}", cells, badness))
    return [Table(title, *laid_out(names, columns))]


def short_of_1(measured: Iterable[Measured]) -> float:
    """How far the mean of those that are numbers stays below 1; without any, infinitely far."""
    values = [one.value for one in measured if math.isfinite(one.value)]
    return 1 - statistics.fmean(values) if values else math.inf
