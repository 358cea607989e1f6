"""From a figure's panels to a PNG."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..files import writing
from .looks import INK
from .panels import Figure, Heat, Plot, looks_in
from .png_heat import draw_heats
from .png_plot import draw_plot

PLOT = (4.4, 3.5)  # inches of a panel
SMALL = (2.7, 2.6)  # of one of many that share their axes
SQUARE = 0.62  # of a cell
PAD = 0.08  # around what is drawn
LETTER = 0.068  # of a legend's name


def draw(figure: Figure) -> Drawing | None:
    """None where there is nothing to show."""
    if figure.empty:
        return None
    n_columns = max(map(len, figure.rows))
    width, height = size_of(figure, n_columns)
    drawing = Drawing(figsize=(width, height), dpi=150, layout=ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD))
    grid = drawing.subplots(
        len(figure.rows), n_columns, squeeze=False, sharex=figure.shared, sharey=figure.shared
    )
    looks = looks_in(figure.panels)
    plots = [panel for row in figure.rows for panel in row if isinstance(panel, Plot)]
    heats: list[tuple[Axes, Heat]] = []
    for row, panels in zip(grid, figure.rows):
        for ax, panel in zip(row, [*panels, *[None] * (n_columns - len(panels))]):
            ax.set_visible(panel is not None)
            if isinstance(panel, Plot):
                draw_plot(ax, panel, looks, plots if figure.shared else [panel])
            elif panel:
                heats.append((ax, panel))
    draw_heats(drawing, heats)
    legend(drawing)
    drawing.suptitle(textwrap.fill(figure.title, round(10 * width)), fontsize=11, color=INK)
    if figure.notes:
        notes = "\n".join(line for note in figure.notes for line in textwrap.wrap(note, round(14 * width)))
        drawing.supxlabel(notes, fontsize=8, color=INK, x=0.01, ha="left", ma="left")
    return drawing


def size_of(figure: Figure, n_columns: int) -> tuple[float, float]:
    """Inches."""
    heats = [panel for row in figure.rows for panel in row if isinstance(panel, Heat)]
    if heats:
        width = n_columns * (len(heats[0].columns) * SQUARE + 0.35) + 2.2
        return width, len(figure.rows) * (len(heats[0].rows) * SQUARE + 0.45) + 1.4
    panel = SMALL if figure.shared else PLOT
    plots = [one for one in figure.panels if isinstance(one, Plot)]
    names = {name for one in plots for name in [*one.levels, *(line.name for line in one.lines)]}
    width = n_columns * panel[0] + 0.8 + LETTER * max(map(len, names), default=0)
    least = 0.25 * len(names) + 0.6  # for the legend
    return width, max(len(figure.rows) * panel[1] + 0.6 + 0.15 * len(figure.notes), least)


def legend(drawing: Drawing) -> None:
    handles = {
        label: handle
        for ax in drawing.axes
        for handle, label in zip(*ax.get_legend_handles_labels())
        if not label.startswith("_")
    }
    if handles:
        drawing.legend(
            handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=9
        )


def save(drawing: Drawing, file: Path) -> None:
    with writing(file) as unfinished:
        drawing.savefig(unfinished, format="png")
