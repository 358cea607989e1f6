"""From compared criteria to a Markdown report."""

from pathlib import Path

from sweeps.criteria import Contest
from sweeps.criteria_points import kinds_of
from sweeps.criteria_table import block_name, metric_name, quality_rows, rows_of, shown
from sweeps.markdown import aligned, markdown
from sweeps.nats import NATS
from sweeps.points import GEOMETRIC_MEAN, MEAN_ACCURACY
from sweeps.records import Records
from sweeps.report import distinct, opening, titled, what_was_run
from sweeps.table import unfinished

AGREEMENT = {
    "quality": "Scores against the truth, window by window",
    "quality_size": "Scores against the size of the change alone, window by window",
    "quality_static": "Scores against the truth, both averaged over windows first",
}


def section(contest: Contest, figure: Path | None, folder: Path) -> list[str]:
    chart = contest.chart
    kinds = distinct("+".join(kinds_of(record)) for record in chart.records if record.point.level > 0)
    lines = [*opening(chart, "criteria", legend(contest), figure, folder), *dense(contest)]
    for block in contest.blocks:
        # every task beside the mean would make the table too wide to read
        by_task = contest.metrics.index(GEOMETRIC_MEAN) + 1 if GEOMETRIC_MEAN in contest.metrics else None
        lines += titled([(block_name(block), rows_of(block, contest.metrics[:by_task], "**"))])
        if by_task:
            header, *rows = rows_of(block, contest.metrics[by_task:], "**")
            lines += [*markdown(header, rows), ""]
    for which, title in AGREEMENT.items():
        table = quality_rows(contest.judges, which, "**")
        if table:
            lines += titled([(title, table)])
    lines += ["### What was run", ""]
    lines += [*markdown(["", ""], [*what_was_run(chart), ["kinds pruned", kinds or "-"]]), ""]
    return lines


def legend(contest: Contest) -> str:
    n_seeds = {len(mark.seeds) for block in contest.blocks for curve in block.curves for mark in curve.marks}
    words = ["The best of a column is bold."]
    if contest.blocks:
        words.append("Rows are ranked by their first metric at the middle level.")
        words.append("Skipped: the share of the whole model, dense layers counted.")
    if NATS in contest.metrics:
        words.append("Nats: log perplexity less that of the dense model, window by window; 0 is as good.")
    if n_seeds - {1}:
        words.append("± is the standard deviation over the seeds where there are several.")
    else:
        words.append("± is the measure's standard error.")
    return " ".join(words)


def dense(contest: Contest) -> list[str]:
    chart = contest.chart
    names = [*([chart.perplexity] if chart.perplexity else []), *chart.accuracies]
    if chart.dense is None or not names:
        return []
    cells = [shown(chart.dense.metrics.get(name), name) for name in names]
    return [*markdown(["", *map(metric_name, names)], [["dense", *cells]]), ""]


def told(records: Records, contests: list[Contest]) -> str:
    """All that a person at the console wants to know of a sweep."""
    lines: list[str] = []
    for contest in contests:
        lines += ["", contest.chart.name, *contest.chart.notes]
        for block in contest.blocks:
            header, *rows = rows_of(block, contest.metrics[: 2 if MEAN_ACCURACY in contest.metrics else None])
            lines += ["", *aligned([[block_name(block), *header[1:]], *rows])]
        for which, title in AGREEMENT.items():
            table = quality_rows(contest.judges, which)
            lines += ["", title, *aligned(table)] if table else []
    return "\n".join([*lines, *unfinished(records)])
