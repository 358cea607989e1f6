"""From records to grids: criterion x predictor x decided-at, in nats over dense and in ranks foretold."""

from dataclasses import dataclass, replace

from sweeps.curves import Chart, chart
from sweeps.files import Cell
from sweeps.nats import missing, over_dense
from sweeps.paired import Difference
from sweeps.points import by_place, tidy
from sweeps.records import Record

DECIDED_AT = ("token", "prompt", "sequence")  # the order of panels
UNIT = "nats over dense"
SPEARMAN = "Spearman"  # of a net's scores on validation rows, within a layer; a mean over layers and kinds
COLUMNS = (
    *("model", "data", "criterion", "scorer", "decided_at", "level", "seeds"),
    *("unit", "value", "stderr", "lowest_seed", "highest_seed"),
)


@dataclass(frozen=True)
class Panel:
    """One level, decided at one place; what was not measured, or cannot be, is no cell."""

    level: float
    decided_at: str
    unit: str
    cells: dict[tuple[str, str], Difference]  # (criterion, scorer) -> that of each seed

    @property
    def title(self) -> str:
        words = f"{self.unit}, decided at {self.decided_at}"
        return words if self.unit == SPEARMAN else f"{words}, level {self.level:g}"

    @property
    def low_is_bad(self) -> bool:
        return self.unit == SPEARMAN


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
    groups: dict[tuple[float, str], dict[tuple[str, str], list[Record]]] = {}
    for record in sparse:
        point = record.point
        panel = groups.setdefault((point.level, point.decided_at), {})
        panel.setdefault((point.criterion, point.scorer), []).append(record)
    panels: list[Panel] = []
    for level, decided_at in sorted(groups, key=lambda key: (key[0], DECIDED_AT.index(key[1]))):
        group = groups[level, decided_at]
        nats = {
            cell: over
            for cell, points in group.items()
            if found.perplexity and (over := over_dense(points, records, found.perplexity))
        }
        told = any(panel.unit == SPEARMAN and panel.decided_at == decided_at for panel in panels)
        fits = {} if told else {cell: one for cell, points in group.items() if (one := spearman(points))}
        cells = {UNIT: nats, SPEARMAN: fits}
        panels += [
            Panel(level, decided_at, unit, of)
            for unit, of in cells.items()
            if of or (unit == UNIT and found.perplexity)
        ]
    lacking = missing(records, found.perplexity) if found.perplexity else []
    return Grid(replace(found, notes=[*found.notes, *lacking]), criteria, scorers, panels)


def spearman(points: list[Record]) -> Difference | None:
    """Of the fits of nets; None where no net decides. A level does not change it."""
    nets = [point.predictor for point in points if point.predictor]
    values = [net["metrics"]["val/spearman"] for net in nets if "val/spearman" in net.get("metrics", {})]
    return Difference(tuple(values), None) if values else None


def rows_of(found: Grid) -> list[list[Cell]]:
    """The values of COLUMNS."""
    return [
        [
            *(found.chart.model, found.chart.data, criterion, scorer, panel.decided_at, panel.level),
            *(len(over.values), panel.unit, over.mean, over.stderr, min(over.values), max(over.values)),
        ]
        for panel in found.panels
        for (criterion, scorer), over in panel.cells.items()
    ]
