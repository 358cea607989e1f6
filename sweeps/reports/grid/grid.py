"""From records to grids: criterion x predictor x decided-at, in nats over dense and Spearman."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from ...curves.chart import POSITIONS, Chart, chart, varying
from ...curves.curve import mean_bytes
from ...differences.nats import lacking_nats, over_dense
from ...differences.paired import Difference
from ...files import Cell
from ...records.merging import by_place, one_per_point
from ...records.record import Point, Record

DECIDED_AT = ("token", "prompt", "sequence")  # the order of columns
NATS = "nats over dense"
SPEARMAN = "Spearman"  # of a net's scores on validation rows, within a layer; a mean over layers and kinds
BYTES = "weight bytes not read, %"  # of each plan at a nominal level
COLUMNS = (
    *("model", "data", "criterion", "scorer", "decided_at", "tokens", "scored", "level", "bytes_skipped"),
    *("seeds", "unit", "value", "stderr", "lowest_seed", "highest_seed"),
)


class Place(NamedTuple):
    """A column of panels: when plans are decided, which positions are sparse, and which are scored."""

    decided_at: str
    tokens: str
    scored: str


CellKey = tuple[str, str]  # criterion, scorer


@dataclass(frozen=True)
class GridPanel:
    """One nominal level at one place; what was not measured, or cannot be, is no cell.

    bytes_skipped: of each cell the share of weight bytes not read. more: what of the place varies otherwise.
    """

    level: float
    place: Place
    unit: str
    cells: dict[CellKey, Difference]  # that of each seed
    bytes_skipped: dict[CellKey, float]
    more: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Without its unit."""
        words = [f"decided at {self.place.decided_at}", *self.more]
        return ", ".join(words if self.low_is_bad else [*words, f"nominal level {self.level:g}"])

    @property
    def low_is_bad(self) -> bool:
        return self.unit == SPEARMAN


@dataclass(frozen=True)
class Grid:
    """All of one model and data set. Every panel has the same rows and columns."""

    chart: Chart
    criteria: list[str]
    scorers: list[str]
    panels: list[GridPanel]


def find_grids(records: list[Record]) -> list[Grid]:
    """Records as they were read -> a grid for each model and data set."""
    return [grid(group) for group in by_place(one_per_point(records))]


def grid(records: list[Record]) -> Grid:
    found = chart(records)
    sparse = [record for record in records if record.point.level > 0]
    criteria = list(dict.fromkeys(record.point.criterion for record in sparse))
    scorers = list(dict.fromkeys(record.point.scorer for record in sparse))
    groups: dict[tuple[float, Place], dict[CellKey, list[Record]]] = {}
    for record in sparse:
        panel = groups.setdefault((record.point.level, place_of(record.point)), {})
        panel.setdefault((record.point.criterion, record.point.scorer), []).append(record)
    parts = varying(records, POSITIONS)
    panels: list[GridPanel] = []
    for level, place in sorted(groups, key=lambda key: (key[0], order(key[1]))):
        group = groups[level, place]
        nats = {
            cell: over
            for cell, points in group.items()
            if found.perplexity and (over := over_dense(points, records, found.perplexity))
        }
        again = any(panel.unit == SPEARMAN and panel.place == place for panel in panels)
        fits = {} if again else {cell: one for cell, points in group.items() if (one := spearman(points))}
        bytes_skipped = {cell: mean_bytes(points).skipped for cell, points in group.items()}
        more = tuple(f"{part} {getattr(place, part)}" for part in parts)
        panels += [
            GridPanel(level, place, unit, cells, bytes_skipped, more)
            for unit, cells in ((NATS, nats), (SPEARMAN, fits))
            if cells or (unit == NATS and found.perplexity)
        ]
    lacking = lacking_nats(records, found.perplexity) if found.perplexity else []
    return Grid(replace(found, notes=[*found.notes, *lacking]), criteria, scorers, panels)


def place_of(point: Point) -> Place:
    return Place(point.decided_at, point.tokens, point.scored)


def order(place: Place) -> tuple[int, Place]:
    return DECIDED_AT.index(place.decided_at), place


def spearman(points: list[Record]) -> Difference | None:
    """Of the fits of nets; None where no net decides. A level does not change it."""
    nets = [point.predictor for point in points if point.predictor]
    values = [net["metrics"]["val/spearman"] for net in nets if "val/spearman" in net.get("metrics", {})]
    return Difference(tuple(values), None) if values else None


def rows_of(found: Grid) -> list[list[Cell]]:
    """The values of COLUMNS."""
    return [
        [
            *(found.chart.model, found.chart.data, *cell, *panel.place, panel.level),
            *(panel.bytes_skipped[cell], len(over.values), panel.unit, over.mean, over.stderr),
            *(min(over.values), max(over.values)),
        ]
        for panel in found.panels
        for cell, over in panel.cells.items()
    ]
