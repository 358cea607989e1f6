"""grid.csv, grid.png, grid.md and grid.html."""

import math

from ...figures.looks import BOUNDS, first_word
from ...figures.panels import Cell, Figure, Heat, Panel
from ...records.record import Record
from ..cells import MISSING, difference_cell, percent
from ..paired_table import paired_tables
from ..provenance import what_was_run
from ..report import Report, Section, Table
from .grid import BYTES, COLUMNS, NATS, Grid, GridPanel, find_grids, order, rows_of

FILE = "grid.csv"
LEGEND = (
    "Nats: log perplexity less that of the dense model, window by window; ± is the standard error of its "
    "mean over windows, and in brackets are the lowest and the highest of the seeds, if several. The best"
    " of a panel is bold. Plans are compared at equal nominal levels: what share of the weight bytes each"
    " leaves unread is in the table below theirs. What is decided at the prompt is compared with a dense "
    "model whose loss leaves prompts out, too. Spearman: how the scores that a net predicts rank the "
    "units of a layer, on tokens or windows that it did not learn from; a mean over layers and kinds; 1 is "
    "perfect. Ranks of windows and of tokens have no common scale. Grey, or `-`: not measured, or not "
    "possible."
)


def sections(records: list[Record], against: str) -> list[Section]:
    return [of_grid(grid, against) for grid in find_grids(records)]


def of_grid(grid: Grid, against: str) -> Section:
    tables = [table for panel in grid.panels for table in tables_of(grid, panel)]
    return Section(
        grid.chart,
        Figure(grid.chart.name, rows_of_panels(grid)),
        LEGEND,
        [*tables, *paired_tables(grid.chart, against), what_was_run(grid.chart)],
        {FILE: rows_of(grid)},
        answer(grid),
    )


def answer(grid: Grid) -> str:
    """The least loss at the highest level, of what decides first."""
    panels = [panel for panel in grid.panels if panel.unit == NATS and panel.cells]
    if not panels:
        return ""
    panel = max(panels, key=lambda one: (one.level, -order(one.place)[0]))
    words = []
    for bound in (False, True):
        cells = {
            cell: over.mean for cell, over in panel.cells.items() if (first_word(cell[1]) in BOUNDS) == bound
        }
        cells = {cell: mean for cell, mean in cells.items() if math.isfinite(mean)}
        if cells:
            criterion, scorer = min(cells, key=cells.__getitem__)
            words.append(f"{scorer} by {criterion} {cells[criterion, scorer]:.2f}")
    if not words:
        return ""
    beside = f" ({words[1]})" if len(words) > 1 else ""
    return f"Least nats over dense, {panel.title}: {words[0]}{beside}."


def rows_of_panels(grid: Grid) -> list[list[Panel | None]]:
    """A column for each place where plans are decided, a row for each level and unit."""
    places = sorted({panel.place for panel in grid.panels}, key=order)
    rows: dict[tuple[str, float], list[Panel | None]] = {}
    for panel in sorted(grid.panels, key=lambda panel: panel.low_is_bad):
        row = rows.setdefault((panel.unit, 0.0 if panel.low_is_bad else panel.level), [None for _ in places])
        row[places.index(panel.place)] = heat(grid, panel)
    return list(rows.values())


def heat(grid: Grid, panel: GridPanel) -> Heat:
    cells = []
    for (criterion, scorer), over in panel.cells.items():
        share = percent(panel.bytes_skipped[criterion, scorer])
        text = f"{panel.unit} {difference_cell(over)}<br>weight bytes not read {share} %"
        cells.append(Cell(criterion, scorer, over.mean, text))
    several = len({one.unit for one in grid.panels}) > 1
    title = titled(panel.unit, panel) if several else panel.title
    return Heat(title, grid.criteria, grid.scorers, cells, panel.unit, panel.low_is_bad)


def tables_of(grid: Grid, panel: GridPanel) -> list[Table]:
    """Of nats two: the nats, and the weight bytes that the same plans leave unread."""
    texts = {cell: difference_cell(over) for cell, over in panel.cells.items()}
    found = [Table(titled(panel.unit, panel), table(grid, texts), best(grid, panel))]
    if panel.unit == NATS:
        shares = {cell: percent(share) for cell, share in panel.bytes_skipped.items()}
        found.append(Table(titled(BYTES, panel), table(grid, shares)))
    return found


def titled(what: str, panel: GridPanel) -> str:
    return f"{what[0].upper()}{what[1:]}, {panel.title}"


def table(grid: Grid, texts: dict[tuple[str, str], str]) -> list[list[str]]:
    """The header, then a row for each criterion."""
    rows = [["criterion", *grid.scorers]]
    for criterion in grid.criteria:
        rows.append([criterion, *(texts.get((criterion, scorer), MISSING) for scorer in grid.scorers)])
    return rows


def best(grid: Grid, panel: GridPanel) -> frozenset[tuple[int, int]]:
    choose = max if panel.low_is_bad else min
    known = {cell: over.mean for cell, over in panel.cells.items() if math.isfinite(over.mean)}
    cell = choose(known, key=lambda cell: known[cell], default=None)
    if cell is None:
        return frozenset()
    return frozenset({(grid.criteria.index(cell[0]) + 1, grid.scorers.index(cell[1]) + 1)})


REPORT = Report("grid", "grid", "Criteria, predictors, and when they decide", {FILE: COLUMNS}, sections)
