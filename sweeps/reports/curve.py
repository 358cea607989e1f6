"""Accuracy and perplexity against bytes: curve.csv, paired.csv, curve.png, report.md and report.html."""

import math
from dataclasses import replace

from ..curves.chart import POSITIONS, Chart, ceiling, find_charts, varying
from ..curves.curve import Curve, Mark
from ..differences.nats import NATS
from ..figures.panels import Figure, Level, Line, Panel, Plot, Spot, in_rows
from ..records import points_csv
from ..records.merging import one_per_point
from ..records.metrics import HEADERS, MEAN_ACCURACY, MEANS, SPEED
from ..records.record import Measured, Record
from . import paired_table
from .answers import at_equal_bytes
from .cells import (
    BYTES,
    axis_of,
    cell,
    hover,
    metric_cell,
    over_dense,
    perplexity,
    share_cells,
    share_columns,
    share_header,
)
from .provenance import what_was_run
from .report import Report, Section, Table

SCOPES = {"layer": "ranked per layer", "global": "ranked globally", "threshold": "cut at thresholds"}


def sections(records: list[Record], against: str) -> list[Section]:
    return [of_chart(chart, against, rows(chart)) for chart in find_charts(one_per_point(records))]


def of_chart(chart: Chart, against: str, rows: list[list[Panel | None]]) -> Section:
    return Section(
        chart,
        Figure(title(chart), [row for row in rows if row], details(chart), notes=chart.notes),
        legend(chart),
        [points_table(chart), *paired_table.paired_tables(chart, against), what_was_run(chart)],
        {
            "curve.csv": points_csv.rows_of(chart.records),
            "paired.csv": paired_table.csv_rows(chart, against),
        },
        at_equal_bytes(chart),
    )


def title(chart: Chart) -> str:
    words = [chart.name]
    shared = (
        *(("criterion", "{}"), ("decided_at", "decided at each {}"), ("scope", "{}")),
        *(("tokens", "sparse tokens: {}"), ("scored", "scored: {}")),
    )
    for name, phrase in shared:
        values = sorted({getattr(record.point, name) for record in chart.records if record.point.level > 0})
        if len(values) == 1:  # where they vary, the curves' labels tell
            words.append(SCOPES.get(values[0], phrase.format(values[0])))
    return ", ".join(words)


def legend(chart: Chart) -> str:
    n_seeds = {len(mark.seeds) for curve in chart.curves for mark in curve.marks}
    errors = ["the measure's standard error"] if 1 in n_seeds or not n_seeds else []
    errors += ["the standard deviation over the seeds where there are several"] if n_seeds - {1} else []
    timed = any(SPEED in record.metrics for record in chart.records)
    speed = "Tokens/s: of the same executor, which keeps everything in the dense row. " if timed else ""
    return (
        f"{chart.n_points} points. "
        "Bytes: the share of the weight bytes of all projections and the lm_head that a decoded token does "
        "not read, less what predictors and factors add. Of layers: the same of the layers' projections "
        "alone. Of each kind of unit: the share that was skipped, over the whole model. Nats over dense: log "
        f"perplexity less that of the dense model. {speed}± is {', or '.join(errors)}."
    )


def rows(chart: Chart) -> list[list[Panel | None]]:
    """The first accuracy, and the perplexity, or nats over dense where dense models are several."""
    found: list[Panel | None] = [panel(chart, name) for name in chart.accuracies[:1]]
    if chart.perplexity:
        several = len({record.point.scored for record in chart.records}) > 1
        found.append(nats_panel(chart) if several else panel(chart, chart.perplexity))
    return [found]


def details(chart: Chart) -> list[list[Panel | None]]:
    """Each task, for the page."""
    return in_rows([panel(chart, name) for name in chart.accuracies[1:]])


def panel(chart: Chart, metric: str) -> Plot:
    """Lines begin at the dense model, which reads everything."""
    y = axis_of(metric)
    dense = chart.dense.metrics.get(metric) if chart.dense else None
    start = (0.0, dense.value) if dense else None
    lines = [Line(curve.label, spots(chart, curve, metric), start=start) for curve in chart.curves]
    n_tasks = len(chart.accuracies) - len(MEANS)
    heading = f"{y.title} of {n_tasks} tasks" if metric == MEAN_ACCURACY else y.title
    top = ceiling(chart) if metric == chart.perplexity else None
    levels = {"dense": Level(*dense)} if dense else {}
    return Plot(heading, BYTES, y, [line for line in lines if line.spots], levels, top or None)


def nats_panel(chart: Chart) -> Plot:
    """Perplexities of different positions have no common axis; what they lose has."""
    lines = [
        Line(curve.label, [spot for mark in curve.marks if (spot := nats_spot(mark))], start=(0.0, 0.0))
        for curve in chart.curves
    ]
    y = axis_of(NATS)
    return Plot(y.title, BYTES, y, [line for line in lines if line.spots], {"dense": Level(0.0)})


def nats_spot(mark: Mark) -> Spot | None:
    over = mark.over_dense
    if over is None or not math.isfinite(over.value):
        return None
    return Spot(mark.bytes.skipped, *over, "<br>".join([f"nats over dense {over_dense(mark)}", *hover(mark)]))


def spots(chart: Chart, curve: Curve, metric: str) -> list[Spot]:
    found = []
    for mark in curve.marks:
        if metric in mark.metrics:
            value, stderr = mark.metrics[metric]
            lines = [f"{metric} {metric_cell(mark.metrics[metric], metric)}", *hover(mark)]
            if metric == chart.perplexity:
                lines.append(f"nats over dense {over_dense(mark)}")
            found.append(Spot(mark.bytes.skipped, value, stderr, "<br>".join(lines)))
    return found


def points_table(chart: Chart) -> Table:
    """A row for each level of each curve; the dense model comes once, first."""
    parts, kinds = varying(chart.records, POSITIONS), share_columns(chart.records)
    dense = (
        [replace(chart.dense, over_dense=Measured(0.0, None), achieved=dict.fromkeys(kinds, 0.0))]
        if chart.dense
        else []
    )
    labelled = [("dense", mark) for mark in dense]
    labelled += [(curve.label, mark) for curve in chart.curves for mark in curve.marks]
    several_seeds = any(len(mark.seeds) > 1 for _, mark in labelled)
    header = ["scorer", *parts, "nominal level", *(["seeds"] if several_seeds else []), *share_header(kinds)]
    header += [chart.perplexity, "nats over dense"] if chart.perplexity else []
    beside = [name for name in HEADERS if any(name in mark.metrics for _, mark in labelled)]
    table = [[*header, *(HEADERS[name] for name in beside), *(f"{name} %" for name in chart.accuracies)]]
    for label, mark in labelled:
        row = [label, *(getattr(mark, part) for part in parts), f"{mark.level:g}"]
        row += [str(len(mark.seeds))] if several_seeds else []
        row += share_cells(mark, kinds)
        row += quality(chart, mark)
        row += [metric_cell(mark.metrics.get(name), name) for name in [*beside, *chart.accuracies]]
        table.append(row)
    return Table("Points", table, console_columns=len(header) + 1)


def quality(chart: Chart, mark: Mark) -> list[str]:
    if not chart.perplexity:
        return []
    return [cell(mark.metrics.get(chart.perplexity), perplexity), over_dense(mark)]


REPORT = Report(
    name="report",
    stem="curve",
    title="Quality against bytes",
    csv={"curve.csv": points_csv.COLUMNS, "paired.csv": paired_table.COLUMNS},
    sections=sections,
    lists_origins=True,
)
