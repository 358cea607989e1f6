"""A figure before a library draws it: panels of lines, or of cells."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .looks import DASHES, GREY, INK, KNOWN, Look, first_word, looks_of

Scale = Literal["linear", "percent", "log", "nats"]  # nats: a log scale that reaches zero
MANY = 40  # spots of a line: more markers would hide it


class Axis(NamedTuple):
    title: str
    scale: Scale = "linear"


class Spot(NamedTuple):
    """text: what a reader sees who points at it. ends: of the bar, if they are not value -+ error."""

    x: float
    y: float
    error: float | None = None
    text: str = ""
    ends: tuple[float, float] | None = None
    hollow: bool = False

    @property
    def bar(self) -> tuple[float, float]:
        """How far it reaches below and above the spot."""
        if self.ends:
            return self.y - self.ends[0], self.ends[1] - self.y
        return self.error or 0.0, self.error or 0.0


@dataclass(frozen=True)
class Line:
    """One name has one look in all panels of a figure. start: (x, y) where the line but no marker begins.

    neutral: grey, whatever its name. steps: goes on level from spot to spot.
    """

    name: str
    spots: list[Spot]
    joined: bool = True
    marked: bool = True
    neutral: bool = False
    steps: bool = False
    start: tuple[float, float] | None = None


class Level(NamedTuple):
    """A horizontal line."""

    y: float
    error: float | None = None


@dataclass(frozen=True)
class Plot:
    """top: what lies above is out of sight at first, and an arrow or a number says so."""

    title: str
    x: Axis
    y: Axis
    lines: list[Line]
    levels: dict[str, Level] = field(default_factory=dict)
    top: float | None = None

    def heights(self) -> list[float]:
        """All that are finite, of spots, starts and levels."""
        ys = [spot.y for line in self.lines for spot in line.spots]
        ys += [line.start[1] for line in self.lines if line.start] + [one.y for one in self.levels.values()]
        return list(filter(math.isfinite, ys))


class Cell(NamedTuple):
    row: str
    column: str
    value: float
    text: str


@dataclass(frozen=True)
class Heat:
    """unit: what values are; heats of one unit share their colours. Dark is bad, be that low or high.

    numbers: whether cells have room for theirs.
    """

    title: str
    rows: list[str]
    columns: list[str]
    cells: list[Cell]
    unit: str
    low_is_bad: bool = False
    numbers: bool = True


Panel = Plot | Heat


@dataclass(frozen=True)
class Figure:
    """rows: of panels, None where there is none. on_page: more rows, which the page alone has room for.

    shared: whether all panels have the same axes. notes: lines below the panels of the PNG.
    """

    title: str
    rows: Sequence[Sequence[Panel | None]]
    on_page: Sequence[Sequence[Panel | None]] = ()
    shared: bool = False
    notes: Sequence[str] = ()

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in [*self.rows, *self.on_page] for panel in row if panel]

    @property
    def empty(self) -> bool:
        """Whether the PNG would have nothing to show."""
        return not any(panel and shows(panel) for row in self.rows for panel in row)


def shows(panel: Panel) -> bool:
    if isinstance(panel, Heat):
        return any(math.isfinite(cell.value) for cell in panel.cells)
    return bool(panel.levels) or any(line.spots for line in panel.lines)


def in_rows(panels: Sequence[Panel], columns: int = 3) -> list[list[Panel | None]]:
    """Those that show something, from left to right."""
    shown: list[Panel | None] = [panel for panel in panels if shows(panel)]
    return [shown[n : n + columns] for n in range(0, len(shown), columns)]


def looks_in(panels: Iterable[Panel]) -> dict[str, Look]:
    """Of every line, and of every level but the dense model, which is dashed ink."""
    plots = [panel for panel in panels if isinstance(panel, Plot)]
    lines = [line for plot in plots for line in plot.lines]
    levels = [name for plot in plots for name in plot.levels]
    neutral = {line.name: Look(GREY, 4, 0) for line in lines if line.neutral}
    named = [line.name for line in lines] + [name for name in levels if first_word(name) in KNOWN]
    return looks_of(name for name in named if name not in neutral) | neutral


def level_look(name: str, looks: Mapping[str, Look]) -> tuple[str, int]:
    """(colour, dash): a level is never solid."""
    if name not in looks:
        return INK, 1
    return looks[name].colour, looks[name].dash % (len(DASHES) - 1) + 1
