"""From a grid to a heat map: a column for each place where plans are decided, a row for each level."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from sweeps.grid import DECIDED_AT, Grid, Panel
from sweeps.plot import INK

GREY = "#D5D5D5"
COLOURS = "viridis_r"  # dark is bad; monotonic in lightness, for any kind of colour vision
SQUARE = 0.62  # inches


def draw(grid: Grid) -> Figure | None:
    """Nats over dense; what cannot be, or was not measured, is grey. None without any nats."""
    values = [over.mean for panel in grid.panels for over in panel.cells.values()]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    levels = sorted({panel.level for panel in grid.panels})
    places = [name for name in DECIDED_AT if any(panel.decided_at == name for panel in grid.panels)]
    width = len(places) * (len(grid.scorers) * SQUARE + 0.35) + 2.2
    height = len(levels) * (len(grid.criteria) * SQUARE + 0.45) + 1.4
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(len(levels), len(places), squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat:
        ax.set_visible(False)
    for panel in grid.panels:
        ax = axes[levels.index(panel.level), places.index(panel.decided_at)]
        image = heat(ax, grid, panel, PowerNorm(0.5, min(finite), max(finite)))
        ax.set_title(f"decided at {panel.decided_at}, level {panel.level:g}", fontsize=10, color=INK)
    figure.colorbar(image, ax=axes, label="nats over dense", shrink=0.8, pad=0.02)
    figure.suptitle(grid.chart.name, fontsize=11, color=INK)
    return figure


def heat(ax: Axes, grid: Grid, panel: Panel, scale: Normalize) -> AxesImage:
    ax.set_visible(True)
    ax.set_facecolor(GREY)
    values = np.full((len(grid.criteria), len(grid.scorers)), np.nan)
    for (criterion, scorer), over in panel.cells.items():
        row, column = grid.criteria.index(criterion), grid.scorers.index(scorer)
        if math.isfinite(over.mean):
            values[row, column] = over.mean
        dark = scale(over.mean) > 0.5
        text = f"{over.mean:.2f}" if math.isfinite(over.mean) else "inf"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else INK)
    image = ax.imshow(values, cmap=COLOURS, norm=scale, aspect="auto")
    ax.set_xticks(range(len(grid.scorers)), grid.scorers, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(grid.criteria)), grid.criteria)
    ax.tick_params(labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    return image
