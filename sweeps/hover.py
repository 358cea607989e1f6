"""What a page lets its reader point at in the figures of the reports."""

import html
import math

from sweeps.criteria import Contest
from sweeps.criteria_table import block_name, metric_name, shown
from sweeps.curves import Chart, Curve, Mark, ceiling
from sweeps.grid import Grid
from sweeps.nats import NATS
from sweeps.paired_table import told
from sweeps.panels import Axis, Cell, Heat, Line, Panel, Plot, Spot
from sweeps.points import GEOMETRIC_MEAN, MEAN_ACCURACY, is_accuracy
from sweeps.predictors import Entry, Survey
from sweeps.table import over_dense

SPARSITY = Axis("achieved sparsity, mean of heads and neurons", "percent")


def axis_of(metric: str) -> Axis:
    if metric == NATS:
        return Axis("nats over dense")
    if not is_accuracy(metric):
        return Axis(metric.replace("_", " "), "log")
    means = {MEAN_ACCURACY: "mean accuracy", GEOMETRIC_MEAN: "geometric mean accuracy"}
    return Axis(means.get(metric, f"accuracy on {metric.split('/')[0]}"), "percent")


def curve_panels(chart: Chart) -> list[Panel]:
    """Every accuracy and the perplexity; the lines begin at the dense model."""
    metrics = [
        *chart.accuracies[:1],
        *([chart.perplexity] if chart.perplexity else []),
        *chart.accuracies[1:],
    ]
    panels: list[Panel] = []
    for metric in metrics:
        y = axis_of(metric)
        dense = chart.dense if chart.dense and metric in chart.dense.metrics else None
        lines = [Line(curve.label, curve_spots(chart, curve, metric)) for curve in chart.curves]
        levels = {"dense": dense.metrics[metric].value} if dense else {}
        top = ceiling(chart) if metric == chart.perplexity else None
        if top and not any(0 < spot.y <= top for line in lines for spot in line.spots):
            top = None  # nothing finite
        panels.append(Plot(y.title, SPARSITY, y, [line for line in lines if line.spots], levels, top))
    return panels


def curve_spots(chart: Chart, curve: Curve, metric: str) -> list[Spot]:
    spots = []
    for mark in curve.marks:
        if metric in mark.metrics:
            value, stderr = mark.metrics[metric]
            lines = [f"{metric} {shown(mark.metrics[metric], metric)}", *place_of(mark)]
            if metric == chart.perplexity:
                lines.append(f"nats over dense {over_dense(mark)}")
            spots.append(Spot(mark.sparsity, value, stderr, "<br>".join(lines)))
    return spots


def place_of(mark: Mark) -> list[str]:
    shares = [f"{kind}s skipped {100 * share:.1f} %" for kind, share in mark.achieved.items()]
    return [f"level {mark.level:g}", *shares, f"seed {', '.join(map(str, mark.seeds))}"]


def criteria_panels(contest: Contest) -> list[Panel]:
    """A panel for each scorer and its kinds of units, by the metric that ranks."""
    if not contest.metrics:
        return []
    metric = contest.metrics[0]
    panels: list[Panel] = []
    for block in contest.blocks:
        lines = []
        for curve in block.curves:
            spots = [
                Spot(
                    block.sparsity(mark),
                    *mark.metrics[metric],
                    "<br>".join(
                        [f"{metric_name(metric)} {shown(mark.metrics[metric], metric)}", *place_of(mark)]
                    ),
                )
                for mark in curve.marks
                if metric in mark.metrics
            ]
            lines.append(Line(curve.label, spots))
        x = Axis("achieved sparsity of the kinds that are pruned", "percent")
        panels.append(Plot(block_name(block), x, axis_of(metric), lines))
    return panels


def grid_panels(grid: Grid) -> list[Panel]:
    return [
        Heat(
            panel.title,
            grid.criteria,
            grid.scorers,
            [
                Cell(criterion, scorer, over.mean, f"{panel.unit} {told(over)}")
                for (criterion, scorer), over in panel.cells.items()
            ],
            panel.unit,
            panel.low_is_bad,
        )
        for panel in grid.panels
    ]


def predictors_panels(survey: Survey) -> list[Panel]:
    """Nats against size, and against taps; scorers without a net are horizontal."""
    panels: list[Panel] = []
    for level in survey.levels:
        others = {
            entry.label: entry.over.mean for entry in survey.others(level) if math.isfinite(entry.over.mean)
        }
        for by, title in (("share", "size of the predictor, % of the model"), ("taps", "number of taps")):
            families: dict[str, list[Spot]] = {}
            for entry in survey.nets(level):
                families.setdefault(entry.family, []).append(entry_spot(entry, by))
            lines = [Line(family, spots, joined=False) for family, spots in families.items()]
            panels.append(
                Plot(f"level {level:g}", Axis(title, "log"), Axis("nats over dense"), lines, others)
            )
    return panels


def entry_spot(entry: Entry, by: str) -> Spot:
    net = entry.net
    assert net is not None
    lines = [
        html.escape(entry.label),
        f"nats over dense {told(entry.over)}",
        f"{net.parameters:,} parameters, {100 * net.share_of_model:.2f} % of the model",
        f"{net.taps} taps of rank {net.rank}, {net.feeding}",
    ]
    x = 100 * net.share_of_model if by == "share" else float(net.taps)
    return Spot(x, entry.over.mean, entry.over.stderr, "<br>".join(lines))
