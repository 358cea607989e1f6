"""From a Markdown report and the panels of its figures to one HTML file that needs nothing else."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from sweeps.colours import COLOURS, INK, PALE
from sweeps.files import writing
from sweeps.panels import Axis, Heat, Line, Panel, names_of

SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-down",
    "x",
    "pentagon",
    "hexagon",
)  # as MARKERS in sweeps.plot
DASHES = ("solid", "dash", "dot", "dashdot")
ROW, GAP = 380, 110  # pixels: the height of a panel, and between two
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #333; }
body { max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; margin: 1em 0; }
th, td { border: 1px solid #ddd; padding: 3px 8px; text-align: left; font-variant-numeric: tabular-nums; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 12px; }
img { max-width: 100%; }
"""


def write_page(report: Path, figures: Mapping[str, Sequence[Panel]], file: Path) -> None:
    """figures: by the name of an image in the report, what takes its place; other images are embedded."""
    from plotly.offline import get_plotlyjs  # 5 MB

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(
        renderer: RendererProtocol,
        tokens: Sequence[Token],
        index: int,
        options: OptionsDict,
        env: EnvType,
    ) -> str:
        source = unquote(str(tokens[index].attrs["src"]))
        panels = figures.get(source)
        if panels:
            return figure(panels, f"figure-{list(figures).index(source)}")
        content = base64.b64encode((report.parent / source).read_bytes()).decode()
        return f'<img alt="{html.escape(tokens[index].content)}" src="data:image/png;base64,{content}">'

    markdown.add_render_rule("image", image)
    body = markdown.render(report.read_text(encoding="utf-8"))
    title = html.escape(report.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "))
    script = f"<script>{get_plotlyjs()}</script>" if figures else ""
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>{script}'
    page = f"<!DOCTYPE html>\n<html><head>{head}</head>\n<body>\n{body}</body></html>\n"
    with writing(file) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def figure(panels: Sequence[Panel], name: str) -> str:
    from plotly.io import to_html

    drawn = {"data": traces(panels), "layout": layout(panels)}
    config = {"displaylogo": False, "responsive": True}
    return to_html(drawn, config, include_plotlyjs=False, full_html=False, div_id=name, validate=False)


def columns_of(panels: Sequence[Panel]) -> int:
    return min(len(panels), 2 if len(panels) < 5 else 3)


def layout(panels: Sequence[Panel]) -> dict[str, Any]:
    """Panels stand in rows; each has axes of its own, and its title above it."""
    columns = columns_of(panels)
    rows = math.ceil(len(panels) / columns)
    height = rows * ROW + (rows - 1) * GAP
    found: dict[str, Any] = {
        "height": height + 160,
        "margin": {"l": 70, "r": 20, "t": 70, "b": 90},
        "font": {"color": INK, "size": 12},
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1 + 40 / height},
        "annotations": [],
    }
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left, right = (column + 0.08) / columns, (column + 0.96) / columns
        top = 1 - row * (ROW + GAP) / height
        below = top - ROW / height
        which = "" if number == 0 else str(number + 1)
        x, y = axes_of(panel)
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
        spots = [spot.y for line in panel.lines for spot in line.spots if 0 < spot.y <= panel.top]
        low, high = min([*spots, panel.top]), max(spots, default=panel.top)
        if any(spot.y > panel.top for line in panel.lines for spot in line.spots):
            high = panel.top
        y["range"] = [math.log10(low / 1.15), math.log10(high * 1.15)]
    return x, y


def axis(of: Axis) -> dict[str, Any]:
    look = {"gridcolor": PALE, "zerolinecolor": PALE, "linecolor": INK, "automargin": True}
    percent = {"tickformat": ".0%"} if of.scale == "percent" else {}
    return {**look, **percent, "title": {"text": of.title}, "type": "log" if of.scale == "log" else "linear"}


def traces(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    names, found, told = names_of(panels), [], set()
    for number, panel in enumerate(panels):
        which = "" if number == 0 else str(number + 1)
        place = {"xaxis": f"x{which}", "yaxis": f"y{which}"}
        if isinstance(panel, Heat):
            found.append(heat(panel) | place)
            continue
        for line in panel.lines:
            first = line.name not in told
            told.add(line.name)
            found.append(scatter(line, names.index(line.name)) | place | {"showlegend": first})
        ends = [spot.x for line in panel.lines for spot in line.spots]
        for name, level in panel.levels.items():
            found.append(
                horizontal(name, level, ends or [0.0, 1.0]) | place | {"showlegend": name not in told}
            )
            told.add(name)
    return found


def scatter(line: Line, number: int) -> dict[str, Any]:
    colour = COLOURS[number % len(COLOURS)]
    errors = [spot.error or 0.0 for spot in line.spots]
    return {
        "type": "scatter",
        "mode": "lines+markers" if line.joined else "markers",
        "name": line.name,
        "legendgroup": line.name,
        "x": [spot.x for spot in line.spots],
        "y": [spot.y if math.isfinite(spot.y) else None for spot in line.spots],
        "error_y": {"type": "data", "array": errors, "visible": any(errors), "thickness": 1},
        "text": [spot.told for spot in line.spots],
        "hovertemplate": f"<b>{html.escape(line.name)}</b><br>%{{text}}<extra></extra>",
        "line": {"color": colour, "dash": DASHES[number // len(COLOURS) % len(DASHES)]},
        "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[number % len(SYMBOLS)]},
    }


def horizontal(name: str, level: float, ends: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "x": [min(0.0, *ends), max(ends)],
        "y": [level, level],
        "hovertemplate": f"<b>{html.escape(name)}</b> {level:.4g}<extra></extra>",
        "line": {"color": INK, "dash": "dash", "width": 1},
    }


def heat(panel: Heat) -> dict[str, Any]:
    """What is no cell stays empty."""
    at = {(cell.row, cell.column): cell for cell in panel.cells}
    places = [[at.get((row, column)) for column in panel.columns] for row in panel.rows]
    values = [[cell.value if cell and math.isfinite(cell.value) else None for cell in row] for row in places]
    return {
        "type": "heatmap",
        "x": panel.columns,
        "y": panel.rows,
        "z": values,
        "text": [[cell.told if cell else "" for cell in row] for row in places],
        "hovertemplate": "%{y}, %{x}<br>%{text}<extra></extra>",
        "colorscale": "Viridis",
        "reversescale": not panel.low_is_bad,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
