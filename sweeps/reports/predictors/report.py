"""predictors.csv, predictors.png, predictors.md and predictors.html."""

import html
import math

from ...curves.chart import POSITIONS, varying
from ...figures.panels import Axis, Figure, Level, Line, Panel, Plot, Spot
from ...records.record import Record
from ..cells import MISSING, difference_cell, percent
from ..paired_table import paired_tables
from ..provenance import what_was_run
from ..report import Report, Section, Table
from .survey import COLUMNS, DENSE_FED, Entry, Survey, find_surveys, front, rows_of

FILE = "predictors.csv"
FRONT = "best for its size, or its taps"
AXES = {"parameters": "size of the predictor, % of the model", "taps": "number of taps"}
LEGEND = (
    "Nats: log perplexity less that of the dense model, window by window; ± is the standard error of its "
    "mean over windows, and in brackets are the lowest and the highest of the seeds, if several. Bytes: "
    "the share of the weight bytes that a decoded token does not read, predictor counted. In the figure "
    "the bars are from the lowest to the highest seed; of one seed, the standard error. A star: no "
    "smaller net in one pass is better. Dense-fed nets, hollow in the figure, read the states of a dense "
    "pass, impossible in use. A net that is no worse than dense is not in the figure, whose scale is "
    "logarithmic; a scorer without a net is named there with its value."
)


def sections(records: list[Record], against: str) -> list[Section]:
    return [of_survey(survey, against) for survey in find_surveys(records)]


def of_survey(survey: Survey, against: str) -> Section:
    tables = [Table(f"Nominal level {level:g}", table(survey, level)) for level in survey.levels]
    return Section(
        survey.chart,
        Figure(survey.chart.name, rows_of_panels(survey)),
        LEGEND,
        [*tables, *paired_tables(survey.chart, against), what_was_run(survey.chart)],
        {FILE: rows_of(survey)},
        answer(survey),
    )


def answer(survey: Survey) -> str:
    """The best net in one pass at the highest level, beside scorers without a net."""
    level = max(survey.levels, default=None)
    best = front(survey.nets(level), "parameters") if level is not None else []
    if not best or best[-1].net is None or level is None:
        return ""
    net, others = best[-1], sorted(survey.others(level), key=lambda entry: entry.over.mean)
    size = f"with {100 * best[-1].net.share_of_model:.1f} % of the model's parameters"
    beside = "".join(f", {entry.label} {entry.over.mean:.2f}" for entry in others)
    return f"At nominal level {level:g} {net.label} loses {net.over.mean:.2f} nats {size}{beside}."


def rows_of_panels(survey: Survey) -> list[list[Panel | None]]:
    """Nats against size, and against taps; a column for each level. Empty without any positive nats."""
    shown = [
        entry
        for entry in survey.entries
        if math.isfinite(entry.over.mean) and (entry.over.mean > 0 or not entry.net)
    ]
    levels = sorted({entry.level for entry in shown if entry.over.mean > 0})
    families = list(dict.fromkeys(entry.family for entry in shown if entry.net))
    return [
        [panel([one for one in shown if one.level == level], level, by, families) for level in levels]
        for by in (AXES if levels else ())
    ]


def panel(entries: list[Entry], level: float, by: str, families: list[str]) -> Plot:
    """Scorers without a net are horizontal. One twice as bad as the worst net would squash the nets."""
    nets = [entry for entry in entries if entry.net]
    lines = [
        Line(family, [spot(entry, by) for entry in nets if entry.family == family], joined=False)
        for family in families
    ]
    best = front(entries, by)
    if best:
        steps = [spot(entry, by)._replace(error=None, ends=None) for entry in best]
        lines.append(Line(FRONT, steps, marked=False, neutral=True, steps=True))
    levels = {entry.label: Level(entry.over.mean) for entry in entries if not entry.net}
    worst = max((max(entry.over.mean, *entry.over.values) for entry in nets), default=math.inf)
    top = 2 * worst if math.isfinite(worst) else None
    title = f"nominal level {level:g}"
    return Plot(title, Axis(AXES[by], "log"), Axis("nats over dense", "log"), lines, levels, top)


def spot(entry: Entry, by: str) -> Spot:
    """Its bar is from the lowest to the highest seed; of one seed, the standard error over windows."""
    net, over = entry.net, entry.over
    assert net is not None
    lines = [
        html.escape(entry.label),
        f"nats over dense {difference_cell(over)}",
        f"weight bytes not read {percent(entry.bytes_skipped)} %",
        f"{net.parameters:,} parameters, {100 * net.share_of_model:.2f} % of the model",
        f"{net.taps} taps of rank {net.rank}, {net.feeding}",
    ]
    x = 100 * net.share_of_model if by == "parameters" else float(net.taps)
    ends = (min(over.values), max(over.values)) if len(over.values) > 1 else None
    return Spot(x, over.mean, over.stderr, "<br>".join(lines), ends, hollow=net.feeding == DENSE_FED)


def table(survey: Survey, level: float) -> list[list[str]]:
    """The header, nets by size, then the scorers without a net."""
    best = front(survey.nets(level), "parameters")
    parts = varying(survey.chart.records, POSITIONS)
    size = ["taps", "rank", "parameters", "% of the model", "fed"]
    rows = [["scorer", *parts, *size, "bytes %", "nats over dense"]]
    for entry in sorted(survey.nets(level), key=lambda entry: entry.net.parameters if entry.net else 0):
        assert entry.net is not None
        net = entry.net
        size = [str(net.taps), str(net.rank), f"{net.parameters:,}", f"{100 * net.share_of_model:.2f}"]
        name = entry.family + (" *" if entry in best else "")
        rows.append(row(entry, name, parts, [*size, net.feeding]))
    others = sorted(survey.others(level), key=lambda entry: entry.over.mean)
    return [*rows, *(row(entry, entry.label, parts, [MISSING] * 5) for entry in others)]


def row(entry: Entry, name: str, parts: list[str], size: list[str]) -> list[str]:
    where = [getattr(entry.records[0].point, part) for part in parts]
    return [name, *where, *size, percent(entry.bytes_skipped), difference_cell(entry.over)]


REPORT = Report("predictors", "predictors", "Predictors by their size", {FILE: COLUMNS}, sections)
