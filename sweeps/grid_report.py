"""From a grid to grid.csv, grid.png grid.md and grid.html."""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from sweeps.files import write_csv
from sweeps.grid import COLUMNS, Grid, Panel, find_grids, rows_of
from sweeps.hover import grid_panels
from sweeps.markdown import aligned
from sweeps.paired_table import told
from sweeps.rebuild import Part, Rebuilt, read_some, write_parts
from sweeps.records import Records
from sweeps.report import closing, opening, titled
from sweeps.reports import AGAINST
from sweeps.table import unfinished

LEGEND = (
    "Nats: log perplexity less that of the dense model, window by window; ± is the standard error of its "
    "mean over windows, and in brackets are the lowest and the highest of the seeds, if several. The best of "
    "a panel is bold. What is decided at the prompt is compared with a dense model whose loss leaves prompts "
    "out, too. Spearman: how the scores that a net predicts rank the units of a layer, on validation "
    "rows that it did not learn from; a mean over layers and kinds; 1 is perfect. Grey, or `-`: not "
    "measured, or not possible."
)


def find(folders: Iterable[Path]) -> tuple[Records, list[Grid]]:
    """Everything but the files: quick, and without matplotlib."""
    records = read_some(folders)
    return records, find_grids(records.done)


def rebuild(folders: Iterable[Path], out: Path, against: str = AGAINST) -> Rebuilt:
    """The same records give the same files."""
    from sweeps.grid_plot import draw  # matplotlib takes a second

    records, grids = find(folders)
    write_csv(COLUMNS, (row for grid in grids for row in rows_of(grid)), out / "grid.csv")
    parts = [
        Part(grid.chart, draw(grid), grid_panels(grid), partial(section, grid, folder=out, against=against))
        for grid in grids
    ]
    return write_parts("grid", "Criteria, predictors, and when they decide", records, parts, out)


def summary(folders: Iterable[Path], against: str = AGAINST) -> str:
    """All that a person at the console wants to know of a sweep."""
    records, grids = find(folders)
    lines: list[str] = []
    for grid in grids:
        lines += ["", grid.chart.name, *grid.chart.notes]
        for panel in grid.panels:
            lines += [
                "",
                panel.title,
                *aligned(table(grid, panel)),
            ]
    return "\n".join([*lines, *unfinished(records)])


def section(grid: Grid, figure: Path | None, folder: Path, against: str) -> list[str]:
    tables = (
        (f"{panel.title[0].upper()}{panel.title[1:]}", table(grid, panel, "**")) for panel in grid.panels
    )
    lines = [*opening(grid.chart, "grid", LEGEND, figure, folder), *titled(tables)]
    return [*lines, *closing(grid.chart, against)]


def table(grid: Grid, panel: Panel, bold: str = "") -> list[list[str]]:
    """The header, then a row for each criterion; `bold` goes about the best cell."""
    choose = max if panel.low_is_bad else min
    known = {cell: over.mean for cell, over in panel.cells.items() if math.isfinite(over.mean)}
    best = choose(known, key=lambda cell: known[cell], default=None)
    rows = [["criterion", *grid.scorers]]
    for criterion in grid.criteria:
        row = [criterion]
        for scorer in grid.scorers:
            over = panel.cells.get((criterion, scorer))
            about = bold if (criterion, scorer) == best else ""
            row.append(f"{about}{told(over)}{about}" if over else "-")
        rows.append(row)
    return rows
