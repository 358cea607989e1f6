"""From charts to paired.csv, and to the table of paired differences in a report."""

from collections.abc import Iterable
from typing import NamedTuple

from sweeps.curves import Chart, by_label
from sweeps.files import Cell
from sweeps.markdown import markdown
from sweeps.paired import DENSE, Difference, Pair, difference, mean_of, reference_of
from sweeps.points import MEAN_ACCURACY, MEANS, is_perplexity

COLUMNS = (
    *("model", "data", "scorer", "level", "against", "metric", "seeds"),
    *("difference", "stderr", "lowest_seed", "highest_seed"),
)
NATS = "nats"  # log perplexity less the other's


class Row(NamedTuple):
    scorer: str  # a curve's label, as `against` is
    level: float
    against: str
    metric: str
    difference: Difference


def find_rows(chart: Chart, against: str) -> list[Row]:
    """Each point less that of the scorer `against`, and less the dense one."""
    labels = by_label(chart.records)
    names = {id(r): label for label, levels in labels.items() for group in levels.values() for r in group}
    rows = []
    for label, levels in labels.items():
        for level in sorted(levels):
            for other in dict.fromkeys((against, DENSE)):
                found = [(record, reference_of(record, chart.records, other)) for record in levels[level]]
                pairs = [(ours, theirs) for ours, theirs in found if theirs is not None]
                if pairs:
                    named = names.get(id(pairs[0][1]), DENSE)
                    rows += [Row(label, level, named, *one) for one in differences(chart, pairs)]
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


def csv_rows(charts: Iterable[Chart], against: str) -> list[list[Cell]]:
    """The values of COLUMNS."""
    return [
        [
            *(chart.model, chart.data, row.scorer, row.level, row.against, row.metric),
            *(len(row.difference.values), row.difference.mean, row.difference.stderr),
            *(min(row.difference.values), max(row.difference.values)),
        ]
        for chart in charts
        for row in find_rows(chart, against)
    ]


def section(chart: Chart, against: str) -> list[str]:
    """Nats and the first accuracy, where there are any; every task is in paired.csv."""
    metrics = [NATS, *chart.accuracies[:1]]
    rows = [row for row in find_rows(chart, against) if row.metric in metrics]
    if not rows:
        return []
    columns = list(dict.fromkeys((row.metric, row.against) for row in rows))
    columns.sort(key=lambda column: (metrics.index(column[0]), column[1] == DENSE))
    cells = {(row.scorer, row.level, row.metric, row.against): shown(row) for row in rows}
    points = list(dict.fromkeys((row.scorer, row.level) for row in rows))
    header = ["scorer", "level", *(f"{heading(metric)} over {other}" for metric, other in columns)]
    table = [
        [scorer, f"{level:g}", *(cells.get((scorer, level, *column), "-") for column in columns)]
        for scorer, level in points
    ]
    spread = any(len(row.difference.values) > 1 for row in rows)
    return [
        "### Differences on the same examples",
        "",
        *markdown(header, table),
        "",
        "Example by example, so that what they have in common does not blur it: ± is the standard error "
        "of the mean difference over windows or questions, of a mean over tasks combined from theirs. "
        + ("In brackets: the lowest and the highest of the seeds. " if spread else "")
        + "Below 0 is better in nats, above 0 in accuracy. Every metric is in paired.csv.",
        "",
    ]


def heading(metric: str) -> str:
    if metric == NATS:
        return NATS
    return "mean accuracy, points," if metric == MEAN_ACCURACY else f"{metric}, points,"


def shown(row: Row) -> str:
    return told(row.difference) if row.metric == NATS else told(row.difference, scale=100, digits=1)


def told(difference: Difference, scale: int = 1, digits: int = 3) -> str:
    """Its mean over seeds ± the error of the examples (lowest to highest seed)."""
    values, stderr = difference.values, difference.stderr
    text = f"{scale * difference.mean:+.{digits}f}"
    text += "" if stderr is None else f" ± {scale * stderr:.{digits}f}"
    if len(values) > 1:
        low, high = (f"{scale * end:+.{digits}f}" for end in (min(values), max(values)))
        text += f" ({low} to {high})"
    return text
