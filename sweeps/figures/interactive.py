"""From a figure's panels to what plotly draws, to point at."""

import html
import math
from collections.abc import Sequence
from typing import Any

from .looks import GREY, INK, PAGE_DASHES, PALE, SYMBOLS, look
from .panels import Axis, Figure, Heat, Line, Panel, Plot, names_of

ROW, GAP = 380, 110  # pixels: the height of a panel, and between two


def to_html(figure: Figure, name: str) -> str:
    from plotly.io import to_html as written

    placed = places_of(figure)
    drawn = {"data": traces(placed), "layout": layout(placed, figure.shared)}
    config = {"displaylogo": False, "responsive": True}
    return written(drawn, config, include_plotlyjs=False, full_html=False, div_id=name, validate=False)


def places_of(figure: Figure) -> list[list[Panel | None]]:
    """Rows of one width."""
    rows = [list(row) for row in [*figure.rows, *figure.on_page]]
    width = max(map(len, rows))
    return [[*row, *[None] * (width - len(row))] for row in rows]


def numbered(rows: Sequence[Sequence[Panel | None]]) -> list[tuple[str, int, int, Panel]]:
    """(what plotly adds to the names of its axes, row, column, panel)"""
    places = [(row, column, panel) for row, of in enumerate(rows) for column, panel in enumerate(of) if panel]
    return [(str(n + 1) if n else "", *place) for n, place in enumerate(places)]


def layout(rows: Sequence[Sequence[Panel | None]], shared: bool = False) -> dict[str, Any]:
    """Each panel has axes of its own, and its title above it."""
    n_columns = len(rows[0])
    height = len(rows) * ROW + (len(rows) - 1) * GAP
    found: dict[str, Any] = {
        "height": height + 160,
        "margin": {"l": 70, "r": 20, "t": 70, "b": 90},
        "font": {"color": INK, "size": 12},
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1 + 40 / height},
        "annotations": [],
    }
    for which, row, column, panel in numbered(rows):
        left, right = (column + 0.08) / n_columns, (column + 0.96) / n_columns
        top = 1 - row * (ROW + GAP) / height
        below = top - ROW / height
        x, y = axes_of(panel)
        if shared and which:
            x, y = {**x, "matches": "x"}, {**y, "matches": "y"}
        found[f"xaxis{which}"] = {**x, "domain": [left, right], "anchor": f"y{which}"}
        found[f"yaxis{which}"] = {**y, "domain": [max(below, 0.0), top], "anchor": f"x{which}"}
        title = {"text": html.escape(panel.title), "x": (left + right) / 2, "y": top}
        about = {"xref": "paper", "yref": "paper", "yanchor": "bottom", "showarrow": False}
        found["annotations"].append({**title, **about, "font": {"size": 13}})
    return found


def axes_of(panel: Panel) -> tuple[dict[str, Any], dict[str, Any]]:
    if isinstance(panel, Heat):
        names = {"type": "category", "automargin": True}
        x = {**names, "categoryarray": panel.columns, "categoryorder": "array"}
        return x, {**names, "categoryarray": panel.rows, "categoryorder": "array", "autorange": "reversed"}
    x, y = axis(panel.x), axis(panel.y)
    if panel.x.scale != "log":
        x["rangemode"] = "tozero"
    if panel.top:  # a log axis has its range in powers of ten
        heights = [value for value in panel.heights() if value > 0]
        drawn = [value for value in heights if value <= panel.top]
        high = panel.top if max(heights, default=0) > panel.top else max(drawn, default=panel.top)
        y["range"] = [math.log10(min([*drawn, panel.top]) / 1.15), math.log10(high * 1.15)]
    return x, y


def axis(of: Axis) -> dict[str, Any]:
    style = {"gridcolor": PALE, "zerolinecolor": PALE, "linecolor": INK, "automargin": True}
    percent = {"tickformat": ".0%"} if of.scale == "percent" else {}
    kind = "log" if of.scale == "log" else "linear"
    return {**style, **percent, "title": {"text": html.escape(of.title)}, "type": kind}


def traces(rows: Sequence[Sequence[Panel | None]]) -> list[dict[str, Any]]:
    panels = [panel for row in rows for panel in row if panel]
    names, found, in_legend = names_of(panels), [], set()
    for which, _, _, panel in numbered(rows):
        place = {"xaxis": f"x{which}", "yaxis": f"y{which}"}
        if isinstance(panel, Heat):
            found.append(heat(panel, panels) | place)
            continue
        drawn = [scatter(line, names) for line in panel.lines] + levels_of(panel)
        for trace in drawn:
            first = trace["name"] not in in_legend
            in_legend.add(trace["name"])
            found.append(trace | place | {"showlegend": first})
    return found


def scatter(line: Line, names: list[str]) -> dict[str, Any]:
    colour, marker, dash = look(line.name, names)
    bars = [spot.bar for spot in line.spots]
    error = {"type": "data", "array": [above for _, above in bars], "visible": any(map(any, bars))}
    error |= {"symmetric": False, "arrayminus": [below for below, _ in bars], "thickness": 1}
    mode = [*(["lines"] if line.joined else []), *(["markers"] if line.marked else [])]
    return {
        "type": "scatter",
        "mode": "+".join(mode),
        "name": html.escape(line.name),
        "legendgroup": html.escape(line.name),
        "x": [spot.x for spot in line.spots],
        "y": [spot.y if math.isfinite(spot.y) else None for spot in line.spots],
        "error_y": error,
        "text": [spot.text for spot in line.spots],
        "hovertemplate": f"<b>{html.escape(line.name)}</b><br>%{{text}}<extra></extra>",
        "line": {"color": colour, "dash": PAGE_DASHES[dash], "shape": "hv" if line.steps else "linear"},
        "marker": {
            "color": colour,
            "size": 8,
            "symbol": [SYMBOLS[marker] + ("-open" if spot.hollow else "") for spot in line.spots],
        },
    }


def levels_of(panel: Plot) -> list[dict[str, Any]]:
    """Horizontal lines as wide as the others."""
    ends = [spot.x for line in panel.lines for spot in line.spots] or [0.0, 1.0]
    if panel.x.scale != "log":
        ends = [0.0, *ends]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(name),
            "legendgroup": html.escape(name),
            "x": [min(ends), max(ends)],
            "y": [level.y, level.y],
            "hovertemplate": f"<b>{html.escape(name)}</b> {level.y:.4g}<extra></extra>",
            "line": {
                "color": GREY if n else INK,
                "dash": PAGE_DASHES[1:][n % 3],
                "width": 1,
            },
        }
        for n, (name, level) in enumerate(panel.levels.items())
    ]


def heat(panel: Heat, panels: Sequence[Panel]) -> dict[str, Any]:
    """What is no cell stays empty. Heats of one unit share their colours."""
    at = {(cell.row, cell.column): cell for cell in panel.cells}
    cells = [[at.get((row, column)) for column in panel.columns] for row in panel.rows]
    alike = [one for one in panels if isinstance(one, Heat) and one.unit == panel.unit]
    values = [cell.value for one in alike for cell in one.cells if math.isfinite(cell.value)] or [0.0, 1.0]
    return {
        "type": "heatmap",
        "x": panel.columns,
        "y": panel.rows,
        "z": [[cell.value if cell and math.isfinite(cell.value) else None for cell in row] for row in cells],
        "zmin": min(values),
        "zmax": max(values),
        "text": [[cell.text if cell else "" for cell in row] for row in cells],
        "hovertemplate": "%{y}, %{x}<br>%{text}<extra></extra>",
        "colorscale": "Viridis",
        "reversescale": not panel.low_is_bad,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
