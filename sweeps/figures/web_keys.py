"""The names of a figure's lines on a page, each with its mark, as wide as there is room."""

import html
from collections.abc import Sequence

import numpy as np
from matplotlib.markers import MarkerStyle

from .leaving import in_sight
from .looks import MARKERS, Look
from .panels import Panel, Plot, level_look, looks_in

DASH_LENGTHS = ("", "6 3", "1.5 3", "6 3 1.5 3")
WIDTH, HEIGHT, SIZE = 30, 12, 8  # pixels of a line, and of its mark


def keys(panels: Sequence[Panel]) -> str:
    """A button for each line and level; nothing where there is none."""
    looks = looks_in(panels)
    plots = [panel for panel in panels if isinstance(panel, Plot)]
    found: dict[str, str] = {}
    for plot in plots:
        for name in in_sight(plot):
            colour, dash = level_look(name, looks)
            found.setdefault(name, stroke(colour, dash))
        for line in plot.lines:
            look = looks[line.name]
            drawn = stroke(look.colour, look.dash) if line.joined else ""
            found.setdefault(line.name, drawn + (mark(look) if line.marked else ""))
    buttons = "".join(button(name, drawn) for name, drawn in found.items())
    return f'<div class="keys">{buttons}</div>' if buttons else ""


def button(name: str, drawn: str) -> str:
    picture = f'<svg width="{WIDTH}" height="{HEIGHT}" aria-hidden="true">{drawn}</svg>'
    text = html.escape(name)
    return f'<button class="key" data-name="{html.escape(text)}">{picture}{text}</button>'


def stroke(colour: str, dash: int) -> str:
    middle = HEIGHT / 2
    return (
        f'<line x1="0" y1="{middle:g}" x2="{WIDTH}" y2="{middle:g}" stroke="{colour}" stroke-width="1.8" '
        f'stroke-dasharray="{DASH_LENGTHS[dash]}"/>'
    )


def mark(look: Look) -> str:
    """As matplotlib has it; its y axis goes up."""
    style = MarkerStyle(MARKERS[look.marker])
    outline = style.get_path().transformed(style.get_transform()).to_polygons()
    places = [(float(x), float(y)) for part in outline for x, y in np.asarray(part)]
    points = " ".join(f"{WIDTH / 2 + SIZE * x:.1f},{HEIGHT / 2 - SIZE * y:.1f}" for x, y in places)
    return f'<polygon points="{points}" fill="{look.colour}"/>'
