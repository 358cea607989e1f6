"""From records to a grid: criterion x predictor x decided-at, in nats over dense."""

from dataclasses import dataclass, replace

from sweeps.curves import Chart, chart
from sweeps.files import Cell
from sweeps.nats import missing, over_dense
from sweeps.paired import Difference
from sweeps.points import by_place, tidy
from sweeps.records import Record

DECIDED_AT = ("token", "prompt", "sequence")  # the order of panels
COLUMNS = (
    *("model", "data", "criterion", "scorer", "decided_at", "level", "seeds"),
    *("nats_over_dense", "stderr", "lowest_seed", "highest_seed"),
)


@dataclass(frozen=True)
class Panel:
    """One level, decided at one place; what was not measured, or cannot be, is no cell."""

    level: float
    decided_at: str
    cells: dict[tuple[str, str], Difference]  # (criterion, scorer) -> nats over dense


@dataclass(frozen=True)
class Grid:
    """All of one model and data set. Every panel has the same rows and columns."""

    chart: Chart
    criteria: list[str]
    scorers: list[str]
    panels: list[Panel]


def find_grids(records: list[Record]) -> list[Grid]:
    """Records as they were read -> a grid for each model and data set."""
    return [grid(group) for group in by_place(tidy(records))]


def grid(records: list[Record]) -> Grid:
    found = chart(records)
    sparse = [record for record in records if record.point.level > 0]
    criteria = list(dict.fromkeys(record.point.criterion for record in sparse))
    scorers = list(dict.fromkeys(record.point.scorer for record in sparse))
    if found.perplexity is None:
        return Grid(found, criteria, scorers, [])
    groups: dict[tuple[float, str], dict[tuple[str, str], list[Record]]] = {}
    for record in sparse:
        point = record.point
        panel = groups.setdefault((point.level, point.decided_at), {})
        panel.setdefault((point.criterion, point.scorer), []).append(record)
    panels = []
    for level, decided_at in sorted(groups, key=lambda key: (key[0], DECIDED_AT.index(key[1]))):
        cells = {
            cell: over
            for cell, group in groups[level, decided_at].items()
            if (over := over_dense(group, records, found.perplexity))
        }
        panels.append(Panel(level, decided_at, cells))
    notes = [*found.notes, *missing(records, found.perplexity)]
    return Grid(replace(found, notes=notes), criteria, scorers, panels)


def rows_of(found: Grid) -> list[list[Cell]]:
    """The values of COLUMNS."""
    return [
        [
            *(found.chart.model, found.chart.data, criterion, scorer, panel.decided_at, panel.level),
            *(len(over.values), over.mean, over.stderr, min(over.values), max(over.values)),
        ]
        for panel in found.panels
        for (criterion, scorer), over in panel.cells.items()
    ]
