"""The colours, markers and dashes of all figures."""

from typing import NamedTuple

# Okabe and Ito's colours, for any kind of colour vision; without their yellow, too pale for a line
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4E16")
INK, PALE, GREY, NO_CELL = "#333333", "#DDDDDD", "#808080", "#D5D5D5"
# of matplotlib, and of plotly: 13, so that with 7 colours and 4 dashes no two of many lines look alike
MARKERS = ("o", "s", "D", "v", "X", "p", "h", "^", "P", "<", ">", "d", "8")
SYMBOLS = (
    *("circle", "square", "diamond", "triangle-down", "x", "pentagon", "hexagon", "triangle-up", "cross"),
    *("triangle-left", "triangle-right", "diamond-tall", "octagon"),
)
DASHES = ("-", "--", ":", "-.")
PAGE_DASHES = ("solid", "dash", "dot", "dashdot")


class Look(NamedTuple):
    """dash, marker: numbers in the tuples above."""

    colour: str
    marker: int
    dash: int


def look(name: str, names: list[str]) -> Look:
    """Of a line among those of a figure; grey where it is none of them."""
    if name not in names:
        return Look(GREY, 4, 0)
    number = names.index(name)
    return Look(COLOURS[number % len(COLOURS)], number % len(MARKERS), number // len(COLOURS) % len(DASHES))
