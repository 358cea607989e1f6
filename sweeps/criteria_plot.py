"""From compared criteria to a figure: a panel for each scorer and the kinds of units that it prunes."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from sweeps.colours import COLOURS, INK, PALE
from sweeps.criteria import Block, Contest
from sweeps.criteria_table import kinds_name, metric_name
from sweeps.curves import Curve
from sweeps.key import draw_key, panels_of, width_of
from sweeps.nats import NATS
from sweeps.points import is_accuracy

MARKERS = ("o", "s", "D", "v", "p", "h", "^", "P", "<", ">", "d", "8", "X")
DASHES = ("-", (0, (4, 1.2)), (0, (1.5, 1)))
BASELINE, GREY = "random", "#888888"  # what every criterion must beat
LINEAR = 0.01  # nats; what is below is noise, and has a linear scale that reaches down to zero
TICKS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WIDTH, HEIGHT = 1.9, 2.8  # of a panel, in inches


def draw(contest: Contest) -> Figure | None:
    """What ranks the criteria against achieved sparsity; None if there is nothing to draw."""
    if not contest.metrics or not contest.blocks:
        return None
    metric = contest.metrics[0]
    scorers = list(dict.fromkeys(block.scorer for block in contest.blocks))
    kinds = list(dict.fromkeys(block.kinds for block in contest.blocks))
    names = sorted({curve.label for block in contest.blocks for curve in block.curves})
    looks = {name: look(number, name) for number, name in enumerate(names)}
    figure = Figure(dpi=150)
    panels_of(figure, len(scorers), len(kinds), width_of(names, WIDTH), (WIDTH, HEIGHT))
    axes = figure.subplots(len(scorers), len(kinds), squeeze=False, sharex=True, sharey=True)
    panels = [axes[scorers.index(block.scorer), kinds.index(block.kinds)] for block in contest.blocks]
    for ax in {*axes.flat} - {*panels}:
        ax.set_visible(False)
    for ax, block in zip(panels, contest.blocks):
        panel(ax, block, metric, start(contest), looks)
    scale(axes[0, 0], contest)
    for ax, block in zip(panels, contest.blocks):
        draw_key(ax, ends_of(block, metric), looks, HEIGHT)
    figure.suptitle(contest.chart.name, fontsize=11, color=INK)
    figure.supxlabel("achieved sparsity of the kinds that are pruned", fontsize=10, color=INK)
    figure.supylabel("nats over dense" if metric == NATS else metric_name(metric), fontsize=10, color=INK)
    return figure


def look(number: int, name: str) -> dict:
    """Colour, marker and dashes all tell criteria apart, lest any of them should have to."""
    if name == BASELINE:
        return {"color": GREY, "marker": "x", "markersize": 5, "linestyle": "-"}
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def start(contest: Contest) -> list[float]:
    """The dense value, where lines but no markers begin; nothing if it was not measured."""
    dense, metric = contest.chart.dense, contest.metrics[0]
    if metric == NATS:
        return [0.0]
    return [dense.metrics[metric].value] if dense and metric in dense.metrics else []


def panel(ax: Axes, block: Block, metric: str, dense: list[float], looks: dict[str, dict]) -> None:
    for curve in reversed(block.curves):  # the best one on top
        x, y, errors = line(block, curve, metric)
        ax.errorbar(
            [0.0] * len(dense) + x,
            dense + y,
            yerr=[0.0] * len(dense) + errors if any(errors) else None,
            markevery=slice(len(dense), None),
            linewidth=1.5,
            elinewidth=1,
            **looks[curve.label],
        )
    ax.set_title(f"{block.scorer}: {kinds_name(block.kinds)}", fontsize=10, color=INK)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.tick_params(labelsize=9, labelbottom=True)
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def line(block: Block, curve: Curve, metric: str) -> tuple[list[float], list[float], list[float]]:
    """Places, values and errors; what is not finite leaves a gap."""
    marks = [mark for mark in curve.marks if metric in mark.metrics]
    values = [mark.metrics[metric] for mark in marks]
    y = [one.value if math.isfinite(one.value) else math.nan for one in values]
    return [block.sparsity(mark) for mark in marks], y, [one.stderr or 0.0 for one in values]


def ends_of(block: Block, metric: str) -> dict[str, tuple[float, float]]:
    ends = {}
    for curve in block.curves:
        x, y, _ = line(block, curve, metric)
        drawn = [end for end in zip(x, y) if math.isfinite(end[1])]
        if drawn:
            ends[curve.label] = drawn[-1]
    return ends


def scale(ax: Axes, contest: Contest) -> None:
    """The same for all panels; nats have a log scale that reaches zero."""
    metric = contest.metrics[0]
    lines = [line(block, curve, metric) for block in contest.blocks for curve in block.curves]
    values = [value for _, y, _ in lines for value in y if math.isfinite(value)]
    ax.set_xlim(0, 1.04 * max([place for x, _, _ in lines for place in x], default=0.0) or 1.0)
    if metric == NATS:
        ax.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
        ax.set_ylim(1.3 * min([*values, -0.1 * LINEAR]), 1.3 * max([*values, LINEAR]))
        ax.yaxis.set_major_locator(FixedLocator(sorted({sign * tick for tick in TICKS for sign in (1, -1)})))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    elif is_accuracy(metric):
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    elif values:
        ax.set_yscale("log", nonpositive="clip")
    ax.autoscale_view()  # now, as the keys go where the limits put the lines
