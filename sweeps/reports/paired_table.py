"""paired.csv, and the table of differences on the same examples."""

from collections.abc import Iterable
from typing import NamedTuple

from ..curves.chart import POSITIONS, Chart, by_label, varying
from ..curves.curve import mean_bytes
from ..differences.paired import Difference, Pair, difference, mean_of
from ..differences.references import DENSE, reference_of
from ..files import Cell
from ..records.metrics import MEAN_ACCURACY, MEANS, is_perplexity
from ..records.record import Point
from .cells import MISSING, difference_cell, percent
from .report import Table

COLUMNS = (
    *("model", "data", "scorer", "tokens", "scored", "level", "against"),
    *("bytes_skipped", "against_bytes_skipped", "metric", "seeds"),
    *("difference", "stderr", "lowest_seed", "highest_seed"),
)
NATS = "nats"  # log perplexity less the other's
NOTE = (
    "The two sides have the same nominal level, and may leave different shares of the weight bytes unread: "
    "see the columns of bytes. Example by example, so that what they have in common does not blur it: ± is "
    "the standard error of the mean difference over windows or questions, of a mean over tasks combined from "
    "theirs. "
)


class Row(NamedTuple):
    """bytes, against_bytes: shares of weight bytes not read, of both sides, means over seeds."""

    scorer: str  # a curve's label, as `against` is
    point: Point  # of the first seed
    level: float
    against: str
    bytes: float
    against_bytes: float
    metric: str
    difference: Difference


def find_rows(chart: Chart, against: str) -> list[Row]:
    """Each point less that of the scorer `against` at its nominal level, and less the dense one."""
    labels = by_label(chart.records)
    names = {id(r): label for label, levels in labels.items() for group in levels.values() for r in group}
    rows = []
    for label, levels in labels.items():
        for level in sorted(levels):
            for other in dict.fromkeys((against, DENSE)):
                found = [(record, reference_of(record, chart.records, other)) for record in levels[level]]
                pairs = [(record, reference) for record, reference in found if reference is not None]
                if pairs:
                    named = names.get(id(pairs[0][1]), DENSE)
                    ours, theirs = (mean_bytes([pair[side] for pair in pairs]).skipped for side in (0, 1))
                    point = pairs[0][0].point
                    rows += [
                        Row(label, point, level, named, ours, theirs, metric, one)
                        for metric, one in differences(chart, pairs)
                    ]
    return rows


def differences(chart: Chart, pairs: list[Pair]) -> list[tuple[str, Difference]]:
    """(metric, difference): nats, accuracies with their mean before them, nats of other perplexities."""
    found = []
    over = difference(pairs, chart.perplexity) if chart.perplexity else None
    if over:
        found.append((NATS, over))
    tasks = [name for name in chart.accuracies if name not in MEANS]
    by_task = [(task, one) for task in tasks if (one := difference(pairs, task))]
    if MEAN_ACCURACY in chart.accuracies and len(by_task) == len(tasks):
        found.append((MEAN_ACCURACY, mean_of([one for _, one in by_task])))
    others = dict.fromkeys(
        name for ours, _ in pairs for name in ours.metrics if is_perplexity(name) and name != chart.perplexity
    )
    of_others = [(f"{name}, {NATS}", one) for name in others if (one := difference(pairs, name))]
    return found + by_task + of_others


def csv_rows(chart: Chart, against: str) -> Iterable[list[Cell]]:
    """The values of COLUMNS."""
    for row in find_rows(chart, against):
        yield [
            *(chart.model, chart.data, row.scorer, row.point.tokens, row.point.scored, row.level),
            *(row.against, row.bytes, row.against_bytes, row.metric, len(row.difference.values)),
            *(row.difference.mean, row.difference.stderr),
            *(min(row.difference.values), max(row.difference.values)),
        ]


def paired_tables(chart: Chart, against: str) -> list[Table]:
    """Nats and the first accuracy, where there are any; every task is in paired.csv."""
    metrics = [NATS, *chart.accuracies[:1]]
    rows = [row for row in find_rows(chart, against) if row.metric in metrics]
    if not rows:
        return []
    columns = list(dict.fromkeys((row.metric, row.against) for row in rows))
    columns.sort(key=lambda column: (metrics.index(column[0]), column[1] == DENSE))
    cells = {(row.scorer, row.level, row.metric, row.against): metric_difference(row) for row in rows}
    others = list(dict.fromkeys(other for _, other in columns if other != DENSE))
    bytes_of = {(row.scorer, row.level, row.against): row.against_bytes for row in rows}
    points = {(row.scorer, row.level): row for row in rows}
    parts = varying(chart.records, POSITIONS)
    header = ["scorer", *parts, "nominal level", "bytes %", *(f"bytes % of {other}" for other in others)]
    table = [[*header, *(f"{heading(metric)} over {other}" for metric, other in columns)]]
    for (scorer, level), row in points.items():
        theirs = [percent(bytes_of.get((scorer, level, other))) for other in others]
        here = [scorer, *(getattr(row.point, part) for part in parts), f"{level:g}", percent(row.bytes)]
        table.append([*here, *theirs, *(cells.get((scorer, level, *one), MISSING) for one in columns)])
    spread = any(len(row.difference.values) > 1 for row in rows)
    note = NOTE + ("In brackets: the lowest and the highest of the seeds. " if spread else "")
    note += "Below 0 is better in nats, above 0 in accuracy. Every metric is in paired.csv."
    title = "Differences on the same examples, at equal nominal level"
    return [Table(title, table, console_columns=0, note=note)]


def heading(metric: str) -> str:
    if metric == NATS:
        return NATS
    return "mean accuracy, points," if metric == MEAN_ACCURACY else f"{metric}, points,"


def metric_difference(row: Row) -> str:
    """In nats, or in points of accuracy."""
    return difference_cell(row.difference) if row.metric == NATS else difference_cell(row.difference, 100, 1)
