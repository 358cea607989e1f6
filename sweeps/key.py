"""Names beside a panel, each as near to the end of its line as the others leave room."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LETTERS = 8.5  # points
BEGIN, LENGTH, GAP = 1.08, 0.12, 0.05  # of the samples of the lines, in widths of a panel


def width_of(names: list[str], panel: float) -> float:
    """What a key beside a panel needs; all in inches."""
    return panel * (BEGIN - 1 + LENGTH + 3 * GAP) + 0.62 * LETTERS / 72 * max(map(len, names))


def panels_of(figure: Figure, rows: int, columns: int, key_width: float, panel: tuple[float, float]) -> None:
    """Sizes the figure for such panels, each with room for a key; a layout engine would take a second."""
    left, below, above, between = 0.75, 0.6, 0.6, 0.5
    width = left + columns * (panel[0] + key_width)
    height = below + above + rows * panel[1] + (rows - 1) * between
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=left / width,
        right=1 - key_width / width,
        bottom=below / height,
        top=1 - above / height,
        wspace=key_width / panel[0],
        hspace=between / panel[1],
    )


def draw_key(ax: Axes, ends: dict[str, tuple[float, float]], looks: dict[str, dict], height: float) -> None:
    """ends: where each line ends, in data; the limits of the axes are final. height: of the panel, inches."""
    to_axes = ax.transScale + ax.transLimits
    places: list[tuple[float, float, str]] = []
    for name, end in ends.items():
        x, y = to_axes.transform(end)
        places.append((float(y), float(x), name))
    places.sort()
    heights = spread([y for y, _, _ in places], 1.15 * LETTERS / 72 / height)
    for (y, x, name), beside in zip(places, heights):
        style = looks[name] | {"transform": ax.transAxes, "clip_on": False}
        ax.plot([x, BEGIN], [y, beside], **style | {"marker": ""}, linewidth=0.6, alpha=0.7)
        ax.plot([BEGIN, BEGIN + LENGTH], [beside] * 2, **style, linewidth=1.5, markevery=[1])
        at = BEGIN + LENGTH + GAP
        ax.text(at, beside, name, transform=ax.transAxes, fontsize=LETTERS, color="#333333", va="center")


def spread(places: list[float], gap: float) -> list[float]:
    """Rising places -> the nearest ones, in least squares, with such gaps, and within 0 to 1 if they fit."""
    groups: list[tuple[float, int]] = []  # (mean, size) of places that touch, less the gaps below them
    for number, place in enumerate(places):
        mean, size = place - number * gap, 1
        while groups and groups[-1][0] > mean:
            below, more = groups.pop()
            mean, size = (mean * size + below * more) / (size + more), size + more
        groups.append((mean, size))
    top = 1 - gap * (len(places) - 1)
    loose = [max(min(mean, top), 0.0) for mean, size in groups for _ in range(size)]
    return [place + number * gap for number, place in enumerate(loose)]
