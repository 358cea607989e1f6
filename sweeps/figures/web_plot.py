"""From a panel of lines to what plotly draws."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .leaving import in_sight, leaving, out_of_sight
from .looks import GREY, INK, PAGE_DASHES, PALE, SYMBOLS, Look
from .panels import MANY, Line, Plot, Spot, level_look
from .rulers import Ruler, ruler_x, ruler_y

HEIGHT = 340  # pixels
BAND = 0.07  # how dark
Drawing = dict[str, Any]  # data and layout, as plotly takes them


def drawing(plot: Plot, looks: Mapping[str, Look], among: Sequence[Plot]) -> Drawing:
    """looks: of the whole figure's lines and levels. among: plots that share the axes."""
    x, y = ruler_x(plot.x, among), ruler_y(plot.y, among)
    lines = [scatter(line, looks[line.name], y) for line in plot.lines if line.spots]
    return {
        "data": [
            *levels_of(plot, looks, x, y),
            *reversed(lines),
            *arrows(plot, looks),
        ],  # the first one on top
        "layout": {
            "height": HEIGHT,
            "margin": {"l": 64, "r": 14, "t": 30, "b": 52},  # the tool bar lies in that on top
            "font": {"color": INK, "size": 12},
            "plot_bgcolor": "white",
            "hovermode": "closest",
            "showlegend": False,
            "xaxis": axis(x, plot.x.title),
            "yaxis": axis(y, plot.y.title),
            "shapes": bands(plot, looks, y),
            "annotations": [*map(above, range(len(out_of_sight(plot))), out_of_sight(plot))],
        },
    }


def axis(ruler: Ruler, title: str) -> dict[str, Any]:
    ends = [ruler.place(ruler.low), ruler.place(ruler.high)]
    return {
        "type": "log" if ruler.scale == "log" else "linear",
        "range": [math.log10(end) for end in ends] if ruler.scale == "log" else ends,
        "tickvals": [ruler.place(tick) for tick, _ in ruler.ticks],
        "ticktext": [text for _, text in ruler.ticks],
        "title": {"text": html.escape(title), "standoff": 8, "font": {"size": 12}},
        "gridcolor": PALE,
        "linecolor": INK,
        "zeroline": False,
    }


def scatter(line: Line, look: Look, y: Ruler) -> dict[str, Any]:
    """A line that has a start begins there, without a mark."""
    name = html.escape(line.name)
    begins = line.start is not None and line.joined and math.isfinite(line.spots[0].y)
    start = [Spot(*line.start, text="dense")] if begins and line.start else []
    spots = [*start, *line.spots]
    marked = line.marked and len(line.spots) < MANY
    ends = [[end_of(spot, side, y) for spot in spots] for side in (0, 1)]
    error = {"type": "data", "symmetric": False, "arrayminus": ends[0], "array": ends[1]}
    return {
        "type": "scatter",
        "mode": "+".join([*(["lines"] if line.joined else []), *(["markers"] if marked else [])]) or "none",
        "name": name,
        "legendgroup": name,
        "x": [spot.x for spot in spots],
        "y": [y.place(spot.y) if math.isfinite(spot.y) else None for spot in spots],  # a gap
        "error_y": error | {"visible": any(map(any, ends)), "thickness": 1, "width": 3, "color": look.colour},
        "text": [spot.text for spot in spots],
        "hovertemplate": f"<b>{name}</b><br>%{{text}}<extra></extra>",
        "line": {
            "color": look.colour,
            "dash": PAGE_DASHES[look.dash],
            "shape": "hv" if line.steps else "linear",
            "width": 1.8,
        },
        "marker": {
            "color": ["white" if spot.hollow else look.colour for spot in spots],
            "size": [0] * len(start) + [9] * len(line.spots),
            "symbol": SYMBOLS[look.marker],
            "line": {"color": [look.colour if spot.hollow else "white" for spot in spots], "width": 1.2},
        },
        "cliponaxis": True,
    }


def end_of(spot: Spot, side: int, y: Ruler) -> float:
    """How far its bar reaches below (0) or above (1), on the axis of the page."""
    reach = spot.bar[side]
    if not reach or not math.isfinite(spot.y + reach):
        return 0.0
    return abs(y.place(spot.y + (reach if side else -reach)) - y.place(spot.y))


def levels_of(plot: Plot, looks: Mapping[str, Look], x: Ruler, y: Ruler) -> list[dict[str, Any]]:
    """Horizontal lines as wide as the panel, of those that are in sight."""
    shown = {name: plot.levels[name] for name in in_sight(plot)}
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(name),
            "legendgroup": html.escape(name),
            "x": [x.low, x.high],
            "y": [y.place(level.y)] * 2,
            "hovertemplate": f"<b>{html.escape(name)}</b> {level.y:.4g}<extra></extra>",
            "line": {
                "color": level_look(name, looks)[0],
                "dash": PAGE_DASHES[level_look(name, looks)[1]],
                "width": 1.3,
            },
        }
        for name, level in shown.items()
    ]


def bands(plot: Plot, looks: Mapping[str, Look], y: Ruler) -> list[dict[str, Any]]:
    """The error of each level."""
    return [
        {
            **{"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below", "opacity": BAND},
            "y0": y.place(max(level.y - level.error, y.low)),
            "y1": y.place(min(level.y + level.error, y.high)),
            "fillcolor": level_look(name, looks)[0],
            "line": {"width": 0},
        }
        for name, level in ((name, plot.levels[name]) for name in in_sight(plot))
        if level.error
    ]


def arrows(plot: Plot, looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    """At the top, where a line goes above it."""
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "legendgroup": html.escape(name),
            "x": [x],
            "y": [plot.top],
            "marker": {"symbol": "triangle-up", "size": 12, "color": looks[name].colour},
            "hovertemplate": f"<b>{html.escape(name)}</b> goes above<extra></extra>",
            "cliponaxis": False,
        }
        for name, x in leaving(plot).items()
    ]


def above(number: int, words: str) -> dict[str, Any]:
    """What is out of sight, named in the corner."""
    place = {"xref": "paper", "yref": "paper", "x": 1, "y": 1 - 0.07 * number}
    anchor = {"xanchor": "right", "yanchor": "top", "showarrow": False}
    return {**place, **anchor, "text": html.escape(words), "font": {"size": 11, "color": GREY}}
