"""From a panel of cells to what plotly draws, and the bar that tells its colours."""

import html
import math

from matplotlib import colormaps
from matplotlib.colors import to_hex

from .looks import INK, NO_CELL
from .panels import Heat
from .shades import Shades, number
from .web_plot import Drawing

ROW, AROUND = 44, 60  # pixels: the height of a row of cells, and of what is above and below
LOW_ROWS = 420  # of all rows together, where cells have no number
MOST_NAMES = 30  # beside or below cells without numbers
LETTER = 7  # pixels of one beside a row
STEPS = 9  # colours that a bar and a scale are told by


def heat(panel: Heat, shades: Shades) -> Drawing:
    """What is no cell is grey."""
    at = {(cell.row, cell.column): cell for cell in panel.cells}
    cells = [[at.get((row, column)) for column in panel.columns] for row in panel.rows]
    trace = {
        "type": "heatmap",
        "x": list(range(len(panel.columns))),
        "y": list(range(len(panel.rows))),
        "z": [
            [shades.shade(cell.value) if cell and math.isfinite(cell.value) else None for cell in row]
            for row in cells
        ],
        "zmin": 0,
        "zmax": 1,
        "text": [
            [f"{html.escape(f'{cell.row}, {cell.column}')}<br>{cell.text}" if cell else "" for cell in row]
            for row in cells
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "colorscale": [[n / (STEPS - 1), colour] for n, colour in enumerate(colours(shades))],
        "showscale": False,
        "xgap": 2 if panel.numbers else 0,
        "ygap": 2 if panel.numbers else 0,
    }
    names = {"zeroline": False, "showgrid": False, "tickmode": "array", "ticks": ""}
    layout = {
        "height": AROUND + (len(panel.rows) * ROW if panel.numbers else LOW_ROWS),
        "margin": {"l": 24 + LETTER * max(map(len, panel.rows), default=0), "r": 14, "t": 30, "b": 30},
        "font": {"color": INK, "size": 12},
        "plot_bgcolor": NO_CELL if panel.numbers else "white",
        "xaxis": {
            **names,
            "automargin": True,
            **ticks(panel.columns, panel.numbers),
            "range": [-0.5, len(panel.columns) - 0.5],
        },
        "yaxis": {**names, **ticks(panel.rows, panel.numbers), "range": [len(panel.rows) - 0.5, -0.5]},
        "annotations": annotations(panel, shades) if panel.numbers else [],
    }
    return {"data": [trace], "layout": layout}


def ticks(names: list[str], numbers: bool) -> dict[str, list]:
    """Every name, or as many as have room where rows are low."""
    every = 1 if numbers else max(1, math.ceil(len(names) / MOST_NAMES))
    shown = range(0, len(names), every)
    return {"tickvals": list(shown), "ticktext": [html.escape(names[n]) for n in shown]}


def annotations(panel: Heat, shades: Shades) -> list[dict]:
    """The number of each cell, pale where it is dark."""
    return [
        {
            "x": panel.columns.index(cell.column),
            "y": panel.rows.index(cell.row),
            "text": number(cell.value),
            "showarrow": False,
            "font": {
                "color": "white" if math.isfinite(cell.value) and shades.is_dark(cell.value) else INK,
                "size": 12,
            },
        }
        for cell in panel.cells
    ]


def colours(shades: Shades) -> list[str]:
    """From the lowest value to the highest."""
    drawn = colormaps[shades.colours]
    return [to_hex(drawn(n / (STEPS - 1))) for n in range(STEPS)]


def bar(unit: str, shades: Shades) -> str:
    """All heat maps of a unit have these colours."""
    gradient = f"background: linear-gradient(to right, {', '.join(colours(shades))})"
    told = "".join(f"<b>{number(shades.value(at))}</b>" for at in (0.0, 0.25, 0.5, 0.75, 1.0))
    inside = f'<div class="bar"><div style="{gradient}"></div><span>{told}</span></div>'
    return f'<div class="shades">{html.escape(unit)} {inside}</div>'
