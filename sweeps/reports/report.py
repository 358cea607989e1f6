"""What a report is: for each model and data set a figure, tables and rows of a CSV."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..curves.chart import Chart
from ..figures.panels import Figure
from ..files import Cell
from ..records.record import Record, Records


class Table(NamedTuple):
    """rows: the header first. best: (row, column) of cells in bold, counted with the header.

    console_columns: how many of its columns the console shows; None for all. note: a line below it.
    """

    title: str
    rows: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    console_columns: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """All of one model and data set. rows: by the CSV that they go to; chart: whose points are handed on.

    answer: a sentence that says what came out.
    """

    chart: Chart
    figure: Figure
    legend: str
    tables: Sequence[Table]
    rows: dict[str, Iterable[Iterable[Cell]]] = field(default_factory=dict)
    answer: str = ""


@dataclass(frozen=True)
class Report:
    """stem: of the figures; name: of the .md and .html. csv: columns by file.

    sections: (records as they were read, the scorer that others are compared with) -> a section for each
    model and data set.
    """

    name: str
    stem: str
    title: str
    csv: dict[str, tuple[str, ...]]
    sections: Callable[[list[Record], str], list[Section]]
    lists_origins: bool = False  # the run record of each point


class Written(NamedTuple):
    """figures: by the chart's name. points: those of the charts."""

    records: Records
    charts: list[Chart]
    figures: dict[str, Path]
    report: Path
    page: Path

    @property
    def points(self) -> list[Record]:
        return [record for chart in self.charts for record in chart.records]
