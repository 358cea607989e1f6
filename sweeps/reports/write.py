"""From folders of run records to a report's CSV, PNG, Markdown and page, and its summary."""

import logging
from collections.abc import Iterable
from pathlib import Path

from ..curves.chart import Chart
from ..files import write_csv, writing
from ..records.reading import read_some
from .markdown import aligned, beside, bold, markdown
from .page import write_page
from .provenance import failures, origins, positions, shared_settings, unfinished
from .report import Report, Section, Written

log = logging.getLogger(__name__)


def write(report: Report, folders: Iterable[Path], out: Path, against: str) -> Written:
    """The same records give the same files, whatever was there before."""
    records = read_some(folders)
    sections = report.sections(records.done, against)
    for name, columns in report.csv.items():
        write_csv(columns, (row for section in sections for row in section.rows[name]), out / name)
    figures = save_figures(report.stem, sections, out)
    charts = [section.chart for section in sections]
    file = out / f"{report.name}.md"
    written = Written(records, charts, figures, file, file.with_suffix(".html"))
    write_markdown(report, sections, written)
    drawn = {figures[one.chart.name].name: one.figure for one in sections if one.chart.name in figures}
    write_page(file, drawn, written.page)
    log.debug("points: %d, failed jobs: %d -> %s", len(written.points), len(records.failed), written.page)
    return written


def summary(report: Report, folders: Iterable[Path], against: str) -> str:
    """All that a person at the console wants to know of a sweep; without figures, which take a second."""
    records = read_some(folders)
    lines: list[str] = []
    for section in report.sections(records.done, against):
        lines += ["", section.chart.name, *positions(section.chart.records), *section.chart.notes]
        for table in section.tables:
            if table.console_columns != 0:
                shown = [row[: table.console_columns] for row in table.rows]
                lines += ["", table.title, *aligned(shown)]
    return "\n".join([*lines, *unfinished(records)])


def write_markdown(report: Report, sections: list[Section], written: Written) -> None:
    """A section for each chart, then the jobs that failed and the settings that all points share."""
    folder, points = written.report.parent, written.points
    names = ", ".join(section.chart.name for section in sections)
    lines = [f"# {report.title.format(points=len(points))}: {names or 'nothing yet'}", ""]
    for section in sections:
        lines += lines_of(section, report.stem, written.figures.get(section.chart.name), folder)
        lines += origins(section.chart.records, folder) if report.lists_origins else []
    lines += failures(written.records, folder)
    if points:
        lines += ["## Settings that all points share", "", *shared_settings(points), ""]
    with writing(written.report) as unfinished_file:
        unfinished_file.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def lines_of(section: Section, stem: str, figure: Path | None, folder: Path) -> list[str]:
    image = f"![{stem}]({beside(figure, folder)})" if figure else "There is nothing to draw."
    lines = [f"## {section.chart.name}", "", image, "", section.legend, ""]
    lines += [*(f"- {note}" for note in section.chart.notes), ""] if section.chart.notes else []
    for table in section.tables:
        header, *rows = bold(table.rows, table.best)
        lines += [f"### {table.title}", "", *markdown(header, rows), ""]
        lines += [table.note, ""] if table.note else []
    return lines


def save_figures(stem: str, sections: list[Section], out: Path) -> dict[str, Path]:
    """The file of each chart's name that has a figure."""
    from ..figures.png import draw, save  # matplotlib takes a second

    charts = [section.chart for section in sections]
    files: dict[str, Path] = {}
    for section in sections:
        drawing = draw(section.figure)
        if drawing is not None:
            files[section.chart.name] = out / figure_name(stem, section.chart, charts)
            save(drawing, files[section.chart.name])
    if len(charts) > 1:
        (out / f"{stem}.png").unlink(missing_ok=True)  # from when the sweep had seen one model only
    return files


def figure_name(stem: str, chart: Chart, charts: list[Chart]) -> str:
    if len(charts) == 1:
        return f"{stem}.png"
    return f"{stem}-{chart.model}-{chart.data}.png".replace("/", "-")
