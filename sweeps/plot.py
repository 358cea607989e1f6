"""From a chart to a figure."""

import math
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from sweeps.colours import COLOURS, INK, PALE
from sweeps.curves import Chart, Curve, Mark, ceiling
from sweeps.files import writing
from sweeps.points import MEAN_ACCURACY, MEANS

MARKERS = ("o", "s", "D", "v", "X", "p", "h")
DASHES = ("-", "--", ":", "-.")
SCOPES = {"layer": "ranked per layer", "global": "ranked globally", "threshold": "cut at thresholds"}


def draw(chart: Chart) -> Figure | None:
    """Accuracy and perplexity against achieved sparsity, if they were measured; None if neither was."""
    panels = [*chart.accuracies[:1], *([chart.perplexity] if chart.perplexity else [])]
    if not panels:
        return None
    longest = max(len(curve.label) for curve in chart.curves) if chart.curves else 0
    width = 5.2 * len(panels) + 0.8 + 0.07 * longest
    figure = Figure(figsize=(width, 4.4 + 0.15 * len(chart.notes)), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, metric in zip(axes, panels):
        panel(ax, chart, metric)
        if metric == chart.perplexity:
            log_scale(ax, chart, metric)
        else:
            ax.set_ylabel(
                f"accuracy, mean of {len(chart.accuracies) - len(MEANS)} tasks"
                if metric == MEAN_ACCURACY
                else metric
            )
            ax.yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(title(chart), fontsize=11, color=INK, x=0.01, ha="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    if chart.notes:
        notes = "\n".join(line for note in chart.notes for line in textwrap.wrap(note, round(14 * width)))
        figure.supxlabel(notes, fontsize=8, color=INK, x=0.01, ha="left", ma="left")
    return figure


def title(chart: Chart) -> str:
    words = [chart.name]
    for name, phrase in (("criterion", "{}"), ("decided_at", "decided at each {}"), ("scope", "{}")):
        values = sorted({getattr(record.point, name) for record in chart.records if record.point.level > 0})
        if len(values) == 1:  # where they vary, the curves' labels tell
            words.append(SCOPES.get(values[0], phrase.format(values[0])))
    return ", ".join(words)


def panel(ax: Axes, chart: Chart, metric: str) -> None:
    dense = chart.dense.metrics.get(metric) if chart.dense else None
    if chart.dense and dense:
        ax.axhline(dense.value, color=INK, linestyle="--", linewidth=1, label="dense", zorder=1)
        if dense.stderr:
            ax.axhspan(
                dense.value - dense.stderr, dense.value + dense.stderr, color=INK, alpha=0.07, linewidth=0
            )
    for number, curve in enumerate(chart.curves):
        line(ax, number, curve, metric, chart.dense if dense else None)
    farthest = max([mark.sparsity for curve in chart.curves for mark in curve.marks], default=0.1)
    ax.set_xlim(-0.02 * farthest, 1.04 * farthest)
    ax.set_xlabel("achieved sparsity, mean of heads and neurons")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def line(ax: Axes, number: int, curve: Curve, metric: str, dense: Mark | None) -> None:
    """A curve's number gives it one look in all panels. The line, but not the markers, begins at dense."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    marks = [mark for mark in curve.marks if metric in mark.metrics]
    values = [mark.metrics[metric] for mark in marks]
    x, y = [mark.sparsity for mark in marks], [measured.value for measured in values]
    if dense and marks:
        ax.plot(
            [0.0, x[0]], [dense.metrics[metric].value, y[0]], color=colour, linestyle=dashes, linewidth=1.6
        )
    ax.errorbar(
        x,
        y,
        yerr=[measured.stderr or 0.0 for measured in values],
        label=curve.label,
        color=colour,
        linestyle=dashes,
        linewidth=1.6,
        marker=marker,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1,
        capsize=2,
        zorder=3,
    )


def log_scale(ax: Axes, chart: Chart, metric: str) -> None:
    """A log axis up to the ceiling, with an arrow at the top where a curve goes above it."""
    top = ceiling(chart)
    marks = [
        *([chart.dense] if chart.dense else []),
        *(mark for curve in chart.curves for mark in curve.marks),
    ]
    drawn = [y for mark in marks if metric in mark.metrics and (y := mark.metrics[metric].value) <= top]
    ax.set_ylabel(metric.replace("_", " "))
    if not drawn:
        return  # nothing finite; a log axis would have no limits
    ax.set_yscale("log", nonpositive="clip")
    leaves = any(mark.metrics[metric].value > top for mark in marks if metric in mark.metrics)
    low, high = min(drawn) / 1.15, top if leaves else max(drawn) * 1.15
    ax.set_ylim(low, high)
    steps = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    ax.yaxis.set_major_locator(
        LogLocator(subs=steps) if high / low > 6 else MaxNLocator(7, steps=[1, 2, 5, 10])
    )
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}"))
    for number, curve in enumerate(chart.curves):
        crossing = leaves_at(curve, metric, top, chart.dense)
        if crossing is not None:
            ax.plot(
                [crossing],
                [top],
                marker="^",
                markersize=9,
                color=COLOURS[number % len(COLOURS)],
                clip_on=False,
                zorder=4,
            )


def leaves_at(curve: Curve, metric: str, top: float, dense: Mark | None) -> float | None:
    """The sparsity at which the curve's line first crosses the top of a log axis, or None."""
    marks = [mark for mark in [*([dense] if dense else []), *curve.marks] if metric in mark.metrics]
    for before, after in zip([None, *marks], marks):
        if after.metrics[metric].value > top:
            if before is None or not math.isfinite(after.metrics[metric].value):
                return after.sparsity
            start, end = (math.log(mark.metrics[metric].value) for mark in (before, after))
            share = (math.log(top) - start) / (end - start)
            return before.sparsity + share * (after.sparsity - before.sparsity)
    return None


def save(figure: Figure, file: Path) -> None:
    with writing(file) as unfinished:
        figure.savefig(unfinished, format="png")
