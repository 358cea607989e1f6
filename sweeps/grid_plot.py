"""From a grid to a heat map: a column for each place where plans are decided, a row for each level."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from sweeps.colours import INK
from sweeps.grid import DECIDED_AT, SPEARMAN, Grid, Panel

GREY = "#D5D5D5"
COLOURS, HIGH_IS_GOOD = (
    "viridis_r",
    "viridis",
)  # dark is bad; monotonic in lightness, for any kind of colour vision
SQUARE = 0.62  # inches


def draw(grid: Grid) -> Figure | None:
    """What cannot be, or was not measured, is grey. None without any finite number."""
    values = finite(grid.panels)
    if not values:
        return None
    kinds = list(dict.fromkeys(row_of(panel) for panel in grid.panels))
    places = [name for name in DECIDED_AT if any(panel.decided_at == name for panel in grid.panels)]
    width = len(places) * (len(grid.scorers) * SQUARE + 0.35) + 2.2
    height = len(kinds) * (len(grid.criteria) * SQUARE + 0.45) + 1.4
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(len(kinds), len(places), squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat:
        ax.set_visible(False)
    for unit in dict.fromkeys(panel.unit for panel in grid.panels):
        panels = [panel for panel in grid.panels if panel.unit == unit]
        values = finite(panels) or [0.0, 1.0]
        ends = min(values), max(values)
        scale = Normalize(*ends) if unit == SPEARMAN else PowerNorm(0.5, *ends)
        for panel in panels:
            ax = axes[kinds.index(row_of(panel)), places.index(panel.decided_at)]
            image = heat(ax, grid, panel, scale)
            ax.set_title(panel.title.removeprefix(f"{unit}, "), fontsize=10, color=INK)
        rows = sorted({kinds.index(row_of(panel)) for panel in panels})
        figure.colorbar(image, ax=[ax for row in rows for ax in axes[row]], label=unit, shrink=0.8, pad=0.02)
    figure.suptitle(grid.chart.name, fontsize=11, color=INK)
    return figure


def row_of(panel: Panel) -> tuple[str, float]:
    return panel.unit, 0.0 if panel.unit == SPEARMAN else panel.level


def finite(panels: list[Panel]) -> list[float]:
    values = [cell.mean for panel in panels for cell in panel.cells.values()]
    return [value for value in values if math.isfinite(value)]


def heat(ax: Axes, grid: Grid, panel: Panel, scale: Normalize) -> AxesImage:
    ax.set_visible(True)
    ax.set_facecolor(GREY)
    values = np.full((len(grid.criteria), len(grid.scorers)), np.nan)
    for (criterion, scorer), over in panel.cells.items():
        row, column = grid.criteria.index(criterion), grid.scorers.index(scorer)
        if math.isfinite(over.mean):
            values[row, column] = over.mean
        dark = (scale(over.mean) > 0.5) != panel.low_is_bad
        text = f"{over.mean:.2f}" if math.isfinite(over.mean) else "inf"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else INK)
    image = ax.imshow(values, cmap=HIGH_IS_GOOD if panel.low_is_bad else COLOURS, norm=scale, aspect="auto")
    ax.set_xticks(range(len(grid.scorers)), grid.scorers, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(grid.criteria)), grid.criteria)
    ax.tick_params(labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    return image
