"""From panels of cells to heat maps."""

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.image import AxesImage

from .looks import INK, NO_CELL
from .panels import Heat

# dark is bad; monotonic in lightness, for any kind of colour vision
LOW_IS_GOOD, HIGH_IS_GOOD = "viridis_r", "viridis"
LETTERS = 10  # of a title above a cell


def draw_heats(drawing: Drawing, heats: list[tuple[Axes, Heat]]) -> None:
    """Those of one unit share their colours and a bar that tells them."""
    for unit in dict.fromkeys(heat.unit for _, heat in heats):
        of_unit = [(ax, heat) for ax, heat in heats if heat.unit == unit]
        values = [cell.value for _, heat in of_unit for cell in heat.cells if math.isfinite(cell.value)]
        ends = (min(values), max(values)) if values else (0.0, 1.0)
        low_is_bad = of_unit[0][1].low_is_bad
        scale = Normalize(*ends) if low_is_bad else PowerNorm(0.5, *ends)  # what is good differs by little
        images = [draw_heat(ax, heat, scale) for ax, heat in of_unit]
        axes = [ax for ax, _ in of_unit]
        drawing.colorbar(images[-1], ax=axes, label=unit, shrink=0.8, pad=0.02)


def draw_heat(ax: Axes, heat: Heat, scale: Normalize) -> AxesImage:
    """What cannot be, or was not measured, is grey."""
    ax.set_facecolor(NO_CELL)
    values = np.full((len(heat.rows), len(heat.columns)), np.nan)
    for cell in heat.cells:
        row, column = heat.rows.index(cell.row), heat.columns.index(cell.column)
        if math.isfinite(cell.value):
            values[row, column] = cell.value
        dark = (scale(cell.value) > 0.5) != heat.low_is_bad
        text = f"{cell.value:.2f}" if math.isfinite(cell.value) else "inf"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else INK)
    colours = HIGH_IS_GOOD if heat.low_is_bad else LOW_IS_GOOD
    image = ax.imshow(values, cmap=colours, norm=scale, aspect="auto")
    ax.set_xticks(range(len(heat.columns)), heat.columns, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(heat.rows)), heat.rows)
    title = textwrap.fill(heat.title, max(LETTERS * len(heat.columns), 20))
    ax.set_title(title, fontsize=10, color=INK)
    ax.tick_params(labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    return image
