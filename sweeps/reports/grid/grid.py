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
# of a net's scores on validation rows, tokens or windows, within a layer; a mean over layers and kinds
SPEARMAN = "Spearman over"
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
    anywhere: whether every other place has the same cells, and no panel.
    """

    level: float
    place: Place
    unit: str
    cells: dict[CellKey, Difference]  # that of each seed
    bytes_skipped: dict[CellKey, float]
    more: tuple[str, ...] = ()
    anywhere: bool = False

    @property
    def title(self) -> str:
        """Without its unit."""
        if self.anywhere:
            return "wherever plans are decided"
        words = [f"decided at {self.place.decided_at}", *self.more]
        return ", ".join(words if self.low_is_bad else [*words, f"nominal level {self.level:g}"])

    @property
    def low_is_bad(self) -> bool:
        return self.unit.startswith(SPEARMAN)


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
        fits = fits_of(group)
        bytes_skipped = {cell: mean_bytes(points).skipped for cell, points in group.items()}
        more = tuple(f"{part} {getattr(place, part)}" for part in parts)
        panels += [
            GridPanel(level, place, unit, cells, bytes_skipped, more)
            for unit, cells in ((NATS, nats), *fits.items())
            if (cells or (unit == NATS and found.perplexity)) and not known(panels, unit, cells)
        ]
    lacking = lacking_nats(records, found.perplexity) if found.perplexity else []
    several = len(groups) > 1 and len({place for _, place in groups}) > 1
    panels = [replace(one, anywhere=several and is_alone(one, panels)) for one in panels]
    return Grid(replace(found, notes=[*found.notes, *lacking]), criteria, scorers, panels)


def known(panels: list[GridPanel], unit: str, cells: dict[CellKey, Difference]) -> bool:
    """Whether another level or place has shown the same: neither changes a fit."""
    return unit != NATS and any(panel.unit == unit and panel.cells == cells for panel in panels)


def is_alone(panel: GridPanel, panels: list[GridPanel]) -> bool:
    return panel.low_is_bad and sum(other.unit == panel.unit for other in panels) == 1


def fits_of(group: dict[CellKey, list[Record]]) -> dict[str, dict[CellKey, Difference]]:
    """By the unit: ranks of tokens and of windows have no common scale."""
    found: dict[str, dict[CellKey, Difference]] = {}
    for cell, points in group.items():
        if one := spearman(points):
            found.setdefault(f"{SPEARMAN} {rows_learnt(points[0])}", {})[cell] = one
    return found


def rows_learnt(record: Record) -> str:
    pooling = record.settings.get("predictor", {}).get("pooling", "scores")
    return "tokens" if pooling == "scores" else "windows"


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
