"""From predictors by their size to a figure: nats against size and against taps, a column for each level."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from sweeps.colours import COLOURS, INK, PALE
from sweeps.key import draw_key, panels_of, width_of
from sweeps.plot import DASHES, MARKERS
from sweeps.predictors import DENSE_FED, Entry, Survey, front

GREY = "#777777"
WIDTH, HEIGHT = 3.1, 2.9  # of a panel, in inches
TICKS = 0.55  # inches for the scale of the next panel
ABOVE = "0.00"  # room for the value of a line above the panel
AXES = {"parameters": "size of the predictor, % of the model", "taps": "number of taps"}


def draw(survey: Survey) -> Figure | None:
    """None if there is nothing that a log scale of nats can show."""
    shown = [entry for entry in survey.entries if entry.over.mean > 0 and math.isfinite(entry.over.mean)]
    if not shown:
        return None
    levels = sorted({entry.level for entry in shown})
    families = list(dict.fromkeys(entry.family for entry in shown if entry.net))
    others = list(dict.fromkeys(entry.label for entry in shown if not entry.net))
    looks = {name: line_look(number) for number, name in enumerate(others)}
    figure = Figure(dpi=150)
    key_width = width_of([f"{name}: {ABOVE}" for name in others] or [""], WIDTH) + TICKS
    panels_of(figure, 2, len(levels), key_width, (WIDTH, HEIGHT))
    axes = figure.subplots(2, len(levels), squeeze=False, sharex="row", sharey="col")
    for column, level in enumerate(levels):
        here = [entry for entry in shown if entry.level == level]
        axes[0, column].set_title(f"level {level:g}", fontsize=10, color=INK)
        for row, by in enumerate(AXES):
            panel(axes[row, column], here, by, families, looks)
            axes[row, column].set_ylabel("nats over dense", fontsize=9, color=INK)
        scale(axes[0, column], here)
    for row, by in enumerate(AXES):
        scale_across(axes[row, 0], [place(entry, by) for entry in shown if entry.net], by)
    for column, level in enumerate(levels):
        for ax in axes[:, column]:
            name_lines(ax, [entry for entry in shown if entry.level == level and not entry.net], looks)
    figure.suptitle(survey.chart.name, fontsize=11, color=INK)
    legend(figure, families, any(entry.net and entry.net.feeding == DENSE_FED for entry in shown))
    return figure


def place(entry: Entry, by: str) -> float:
    assert entry.net is not None
    return 100 * entry.net.share_of_model if by == "parameters" else float(entry.net.taps)


def look(number: int) -> dict:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def line_look(number: int) -> dict:
    return {"color": GREY, "linestyle": DASHES[number % len(DASHES)], "marker": ""}


def name_lines(ax: Axes, lines: list[Entry], looks: dict[str, dict]) -> None:
    """Beside the panel; one that lies above it has its value, too."""
    right, top = ax.get_xlim()[1], ax.get_ylim()[1]
    ends, styles = {}, {}
    for entry in lines:
        out = entry.over.mean > top
        name = f"{entry.label}: {entry.over.mean:.2f}" if out else entry.label
        ends[name], styles[name] = (right, min(entry.over.mean, top)), looks[entry.label]
    draw_key(ax, ends, styles, HEIGHT)


def panel(ax: Axes, entries: list[Entry], by: str, families: list[str], looks: dict[str, dict]) -> None:
    """Hollow markers are dense-fed: no such predictor is possible in use, so none is on the front."""
    best = front(entries, by)
    ax.plot(
        [place(entry, by) for entry in best],
        [entry.over.mean for entry in best],
        color=INK,
        linewidth=0.8,
        drawstyle="steps-post",
        zorder=1,
    )
    for entry in entries:
        if entry.net is None:
            ax.axhline(entry.over.mean, linewidth=1.1, zorder=0, **line(looks[entry.label]))
            continue
        style = look(families.index(entry.family))
        hollow = entry.net.feeding == DENSE_FED
        ax.errorbar(
            [place(entry, by)],
            [entry.over.mean],
            yerr=errors(entry),
            markersize=6,
            markerfacecolor="white" if hollow else style["color"],
            markeredgecolor=style["color"] if hollow else "white",
            markeredgewidth=1.3 if hollow else 0.5,
            elinewidth=0.8,
            linestyle="",
            zorder=2 if hollow else 3,
            **style,
        )
    ax.set_xlabel(AXES[by], fontsize=9, color=INK)
    ax.tick_params(labelsize=9, labelbottom=True, labelleft=True)
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def line(style: dict) -> dict:
    return {name: value for name, value in style.items() if name != "marker"}


def errors(entry: Entry) -> list[list[float]] | None:
    """From the lowest to the highest seed; of one seed, the standard error over windows."""
    values, mean = entry.over.values, entry.over.mean
    if len(values) > 1:
        return [[mean - min(values)], [max(values) - mean]]
    return [[entry.over.stderr]] * 2 if entry.over.stderr else None


def scale(ax: Axes, entries: list[Entry]) -> None:
    """A scorer that is twice as bad as the worst net, as random is, would squash the nets."""
    worst = max([entry.over.mean for entry in entries if entry.net], default=math.inf)
    values = [entry.over.mean for entry in entries if entry.over.mean <= 2 * worst]
    ax.set_yscale("log", nonpositive="clip")
    ax.set_ylim(min(values) / 1.25, max(values) * 1.25)
    steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if max(values) / min(values) < 30 else (1.0, 3.0)
    ax.yaxis.set_major_locator(LogLocator(subs=steps))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def scale_across(ax: Axes, places: list[float], by: str) -> None:
    if not places:
        return  # no net has been measured yet
    ax.set_xscale("log")
    ax.set_xlim(min(places) / 1.5, max(places) * 1.5)
    ax.xaxis.set_minor_formatter(NullFormatter())
    if by == "taps":
        ax.xaxis.set_major_locator(FixedLocator(sorted(set(places))))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def legend(figure: Figure, families: list[str], dense_fed: bool) -> None:
    bare: dict[str, Any] = {"linestyle": "", "markersize": 6}
    handles = [Line2D([], [], label=name, **bare, **look(n)) for n, name in enumerate(families)]
    if dense_fed:
        hollow: dict[str, Any] = {"marker": "o", "color": GREY, "markerfacecolor": "white"}
        handles.append(Line2D([], [], label="hollow: dense-fed", **bare, **hollow))
    if not handles:
        return
    handles.append(Line2D([], [], color=INK, linewidth=0.8, label="best for its size, or its taps"))
    width, height = figure.get_size_inches()
    columns = max(1, min(len(handles), int(width / 2.2)))
    rows = math.ceil(len(handles) / columns)
    more = 0.1 + 0.22 * rows  # inches below the panels
    at = figure.subplotpars
    figure.set_size_inches(width, height + more)
    figure.subplots_adjust(
        bottom=(at.bottom * height + more) / (height + more), top=(at.top * height + more) / (height + more)
    )
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=9)
