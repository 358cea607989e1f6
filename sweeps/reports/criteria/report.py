"""criteria.csv, criteria.png, criteria.md and criteria.html."""

from dataclasses import replace

from ...curves.curve import Mark
from ...differences.nats import NATS
from ...figures.panels import Figure, Line, Panel, Plot, Spot
from ...records.metrics import GEOMETRIC_MEAN, MEAN_ACCURACY
from ...records.record import Record
from ..cells import BYTES, axis_of, hover, metric_cell, metric_name
from ..provenance import distinct, what_was_run
from ..report import Report, Section, Table
from .blocks import Block, Comparison, find_comparisons
from .points import kinds_word, with_kinds
from .rows import COLUMNS, rows_of
from .tables import block_table, quality_tables

FILE = "criteria.csv"
BASELINE = "random"  # what every criterion must beat
AGREEMENT = {
    "quality": "Scores against the truth, window by window",
    "quality_size": "Scores against the size of the change alone, window by window",
    "quality_static": "Scores against the truth, both averaged over windows first",
}


def sections(records: list[Record], against: str) -> list[Section]:
    """Every criterion is compared with all others, so `against` says nothing here."""
    return [of_comparison(comparison) for comparison in find_comparisons(records)]


def of_comparison(comparison: Comparison) -> Section:
    """In the points that are handed on, scorers have their kinds."""
    chart = comparison.chart
    kinds = distinct(kinds_word(record) for record in chart.records if record.point.level > 0)
    tables = [*dense_table(comparison), *block_tables(comparison)]
    for which, title in AGREEMENT.items():
        tables += quality_tables(comparison.judges, which, title)
    return Section(
        replace(chart, records=[with_kinds(record) for record in chart.records]),
        Figure(chart.name, rows_of_panels(comparison), shared=True),
        legend(comparison),
        [*tables, what_was_run(chart, [["kinds pruned", kinds or "-"]])],
        {FILE: rows_of(comparison)},
        answer(comparison),
    )


def answer(comparison: Comparison) -> str:
    """The best and the worst criterion of each scorer that prunes all kinds, at the middle level."""
    if not comparison.metrics or not comparison.blocks:
        return ""
    metric, most = comparison.metrics[0], max(len(block.kinds) for block in comparison.blocks)
    words = []
    for block in comparison.blocks:
        at = {
            curve.label: mark for curve in block.curves for mark in curve.marks if mark.level == block.middle
        }
        names = [name for name in at if metric in at[name].metrics]
        if len(block.kinds) == most and names:
            told = [f"{name} {metric_cell(at[name].metrics[metric], metric)}" for name in names]
            worst = f", {told[-1]} is last" if len(told) > 1 else ""
            words.append(f"{block.name} at {block.middle:g}: {told[0]} {metric_name(metric)} is best{worst}")
    return f"{'; '.join(words)}." if words else ""


def block_tables(comparison: Comparison) -> list[Table]:
    """Every task beside the mean would make a table too wide to read: they come in a second one."""
    metrics = comparison.metrics
    n_means = metrics.index(GEOMETRIC_MEAN) + 1 if GEOMETRIC_MEAN in metrics else len(metrics)
    console = 2 if MEAN_ACCURACY in metrics else len(metrics)
    tables = []
    for block in comparison.blocks:
        tables.append(block_table(block, metrics[:n_means], block.name, console))
        if metrics[n_means:]:
            tables.append(block_table(block, metrics[n_means:], f"{block.name}, task by task", 0))
    return tables


def dense_table(comparison: Comparison) -> list[Table]:
    chart = comparison.chart
    names = [*([chart.perplexity] if chart.perplexity else []), *chart.accuracies]
    if chart.dense is None or not names:
        return []
    cells = [metric_cell(chart.dense.metrics.get(name), name) for name in names]
    return [Table("Dense", [["", *map(metric_name, names)], ["dense", *cells]], console_columns=0)]


def rows_of_panels(comparison: Comparison) -> list[list[Panel | None]]:
    """A row for each scorer and a column for each set of kinds, by the metric that ranks."""
    if not comparison.metrics:
        return []
    scorers = list(dict.fromkeys(block.scorer for block in comparison.blocks))
    kinds = list(dict.fromkeys(block.kinds for block in comparison.blocks))
    rows: list[list[Panel | None]] = [[None for _ in kinds] for _ in scorers]
    for block in comparison.blocks:
        rows[scorers.index(block.scorer)][kinds.index(block.kinds)] = panel(comparison, block)
    return rows


def panel(comparison: Comparison, block: Block) -> Plot:
    """Lines begin at the dense model; what is not finite leaves a gap."""
    metric, dense = comparison.metrics[0], comparison.chart.dense
    values = {NATS: 0.0} | ({name: one.value for name, one in dense.metrics.items()} if dense else {})
    start = (0.0, values[metric]) if metric in values else None
    lines = [
        Line(
            curve.label,
            [spot(mark, metric) for mark in curve.marks if metric in mark.metrics],
            neutral=curve.label == BASELINE,
            start=start,
        )
        for curve in block.curves
    ]
    return Plot(block.name, BYTES, axis_of(metric), lines)


def spot(mark: Mark, metric: str) -> Spot:
    lines = [f"{metric_name(metric)} {metric_cell(mark.metrics[metric], metric)}", *hover(mark)]
    return Spot(mark.bytes.skipped, *mark.metrics[metric], "<br>".join(lines))


def legend(comparison: Comparison) -> str:
    n_seeds = {
        len(mark.seeds) for block in comparison.blocks for curve in block.curves for mark in curve.marks
    }
    words = ["The best of a column is bold."]
    if comparison.blocks:
        words.append("Rows are ranked by their first metric at the middle level; levels are nominal.")
        words.append("Skipped: the share of the whole model, dense layers counted.")
        words.append("Bytes: of the weight bytes of all projections and the lm_head, per decoded token.")
    if NATS in comparison.metrics:
        words.append("Nats: log perplexity less that of the dense model, window by window; 0 is as good.")
    if n_seeds - {1}:
        words.append("± is the standard deviation over the seeds where there are several.")
    else:
        words.append("± is the measure's standard error.")
    return " ".join(words)


REPORT = Report("criteria", "criteria", "Pruning criteria compared", {FILE: COLUMNS}, sections)
