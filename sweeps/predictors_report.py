"""From predictors by their size to predictors.csv, predictors.png predictors.md and predictors.html."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from sweeps.files import write_csv
from sweeps.hover import predictors_panels
from sweeps.markdown import aligned
from sweeps.paired_table import told
from sweeps.predictors import COLUMNS, Entry, Survey, find_surveys, front, rows_of
from sweeps.rebuild import Part, Rebuilt, read_some, write_parts
from sweeps.records import Records
from sweeps.report import closing, opening, titled
from sweeps.reports import AGAINST
from sweeps.table import unfinished


def find(folders: Iterable[Path]) -> tuple[Records, list[Survey]]:
    """Everything but the files: quick, and without matplotlib."""
    records = read_some(folders)
    return records, find_surveys(records.done)


def rebuild(folders: Iterable[Path], out: Path, against: str = AGAINST) -> Rebuilt:
    """The same records give the same files. In the points that are handed on, nets' names have their size."""
    from sweeps.predictors_plot import draw  # matplotlib takes a second

    records, surveys = find(folders)
    write_csv(COLUMNS, (row for survey in surveys for row in rows_of(survey)), out / "predictors.csv")
    parts = [
        Part(
            survey.chart,
            draw(survey),
            predictors_panels(survey),
            partial(section, survey, folder=out, against=against),
        )
        for survey in surveys
    ]
    return write_parts("predictors", "Predictors by their size", records, parts, out)


def summary(folders: Iterable[Path], against: str = AGAINST) -> str:
    """All that a person at the console wants to know of a sweep."""
    records, surveys = find(folders)
    lines: list[str] = []
    for survey in surveys:
        lines += ["", survey.chart.name, *survey.chart.notes]
        for level in survey.levels:
            lines += ["", f"level {level:g}", *aligned(table(survey, level))]
    return "\n".join([*lines, *unfinished(records)])


def section(survey: Survey, figure: Path | None, folder: Path, against: str) -> list[str]:
    tables = ((f"Level {level:g}", table(survey, level)) for level in survey.levels)
    lines = [*opening(survey.chart, "predictors", LEGEND, figure, folder), *titled(tables)]
    return [*lines, *closing(survey.chart, against)]


LEGEND = (
    "Nats: log perplexity less that of the dense model, window by window; ± is the standard error of its "
    "mean over windows, and in brackets are the lowest and the highest of the seeds, if several. In the "
    "figure the bars are from the lowest to the highest seed; of one seed, the standard error. A star: no "
    "smaller net in one pass is better. Dense-fed nets read the states of a dense pass, impossible in use. "
    "What is no worse than dense is not in the figure, whose scale is logarithmic."
)


def table(survey: Survey, level: float) -> list[list[str]]:
    """The header, nets by size, then the scorers without a net."""
    best = front(survey.nets(level), "parameters")
    rows = [["scorer", "taps", "rank", "parameters", "% of the model", "fed", "nats over dense"]]
    for entry in sorted(survey.nets(level), key=lambda entry: entry.net.parameters if entry.net else 0):
        assert entry.net is not None
        net = entry.net
        size = [str(net.taps), str(net.rank), f"{net.parameters:,}", f"{100 * net.share_of_model:.2f}"]
        rows.append([entry.family + (" *" if entry in best else ""), *size, net.feeding, told(entry.over)])
    others = sorted(survey.others(level), key=mean)
    return [*rows, *([entry.label, *["-"] * 5, told(entry.over)] for entry in others)]


def mean(entry: Entry) -> float:
    return entry.over.mean
