"""From accuracy and speed to a figure: a panel for each quality, against how many times as fast as dense."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.curves import ceiling
from sweeps.latency import ALL, HIGH, LOW, TIMES, Race, Timed
from sweeps.plot import COLOURS, INK, MARKERS, PALE
from sweeps.points import is_perplexity


def draw(race: Race) -> Figure | None:
    """None if nothing was timed."""
    if not race.timed or not race.qualities:
        return None
    figure = Figure(figsize=(4.6 * len(race.qualities), 4.2), dpi=150, layout="constrained")
    for ax, quality in zip(figure.subplots(1, len(race.qualities), squeeze=False)[0], race.qualities):
        panel(ax, race, quality)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(race.chart.name, fontsize=11, color=INK)
    return figure


def panel(ax: Axes, race: Race, quality: str) -> None:
    of_label: dict[str, list[Timed]] = {}
    for one in race.timed:
        if quality in one.mark.metrics:
            of_label.setdefault(one.label, []).append(one)
    whole = of_label.get(ALL, [])
    if whole:
        style: dict[str, Any] = {"color": INK, "linestyle": "", "markersize": 7}
        value = whole[0].value(quality)
        ax.plot([1], [value], marker="*", label="dense transformers", **style)
        ax.plot([whole[0].value(TIMES)], [value], marker="D", label=ALL, **style)
    for number, (label, timed) in enumerate((k, v) for k, v in of_label.items() if k != ALL):
        at = [one.value(TIMES) for one in timed]
        values = [one.value(quality) for one in timed]
        errors = [
            [x - one.value(LOW) for x, one in zip(at, timed)],
            [one.value(HIGH) - x for x, one in zip(at, timed)],
        ]
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        ax.errorbar(
            at, values, xerr=errors, color=colour, marker=marker, markersize=5, elinewidth=0.8, label=label
        )
        for x, y, one in zip(at, values, timed):
            ax.annotate(
                f"{one.mark.level:g}", (x, y), (4, 4), textcoords="offset points", fontsize=7, color=INK
            )
    if is_perplexity(quality):
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        ax.set_ylim(low, min(high, ceiling(race.chart)))
    ax.set_xlabel("times as fast as dense, a token", fontsize=9, color=INK)
    ax.set_ylabel(quality.replace("_", " "), fontsize=9, color=INK)
    ax.tick_params(labelsize=9)
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
