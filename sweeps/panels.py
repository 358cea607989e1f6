"""Panels of lines, or of cells: a figure before a library draws it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Scale = Literal["linear", "percent", "log"]


class Axis(NamedTuple):
    title: str
    scale: Scale = "linear"


class Spot(NamedTuple):
    """told: what a reader learns who points at it."""

    x: float
    y: float
    error: float | None = None
    told: str = ""


@dataclass(frozen=True)
class Line:
    """One name has one look in all panels of a figure."""

    name: str
    spots: list[Spot]
    joined: bool = True


@dataclass(frozen=True)
class Plot:
    """levels: the places of horizontal lines, by name. top: what lies above is out of sight at first."""

    title: str
    x: Axis
    y: Axis
    lines: list[Line]
    levels: dict[str, float] = field(default_factory=dict)
    top: float | None = None


class Cell(NamedTuple):
    row: str
    column: str
    value: float
    told: str


@dataclass(frozen=True)
class Heat:
    """unit: what values are; dark is bad, be that low or high."""

    title: str
    rows: list[str]
    columns: list[str]
    cells: list[Cell]
    unit: str
    low_is_bad: bool = False


Panel = Plot | Heat


def names_of(panels: Iterable[Panel]) -> list[str]:
    """Of lines, in order."""
    plots = [panel for panel in panels if isinstance(panel, Plot)]
    return list(dict.fromkeys(line.name for plot in plots for line in plot.lines))
