"""From panels of cells to heat maps."""

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.image import AxesImage

from .looks import INK, NO_CELL
from .panels import Heat
from .shades import Shades, number, shades_of

LETTERS = 10  # of a title above a cell


def draw_heats(drawing: Drawing, heats: list[tuple[Axes, Heat]]) -> None:
    """Those of one unit share their colours and a bar that tells them."""
    for unit, shades in shades_of(heat for _, heat in heats).items():
        of_unit = [(ax, heat) for ax, heat in heats if heat.unit == unit]
        images = [draw_heat(ax, heat, shades) for ax, heat in of_unit]
        axes = [ax for ax, _ in of_unit]
        drawing.colorbar(images[-1], ax=axes, label=unit, shrink=0.8, pad=0.02)


def draw_heat(ax: Axes, heat: Heat, shades: Shades) -> AxesImage:
    """What cannot be, or was not measured, is grey."""
    ax.set_facecolor(NO_CELL)
    values = np.full((len(heat.rows), len(heat.columns)), np.nan)
    for cell in heat.cells:
        row, column = heat.rows.index(cell.row), heat.columns.index(cell.column)
        if math.isfinite(cell.value):
            values[row, column] = cell.value
        colour = "white" if math.isfinite(cell.value) and shades.is_dark(cell.value) else INK
        ax.text(column, row, number(cell.value), ha="center", va="center", fontsize=9, color=colour)
    norm = PowerNorm(shades.gamma, shades.low, shades.high)
    image = ax.imshow(values, cmap=shades.colours, norm=norm, aspect="auto")
    ax.set_xticks(range(len(heat.columns)), heat.columns, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(heat.rows)), heat.rows)
    title = textwrap.fill(heat.title, max(LETTERS * len(heat.columns), 20))
    ax.set_title(title, fontsize=10, color=INK)
    ax.tick_params(labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    return image
