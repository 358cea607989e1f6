"""From charts to a Markdown report."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from sweeps.curves import Chart
from sweeps.files import writing
from sweeps.markdown import markdown
from sweeps.paired_table import section as paired_section
from sweeps.records import Record, Records
from sweeps.table import rows_of

OFFERED = "recipe."  # what a sweep chooses from; what it chose is among the other settings


def write_sections(
    title: str, charts: list[Chart], sections: list[list[str]], records: Records, file: Path
) -> None:
    """A section for each chart, then the jobs that failed and the settings that all points share."""
    parts = [f"# {title}: {', '.join(chart.name for chart in charts) or 'nothing yet'}", ""]
    parts += [line for lines in sections for line in lines]
    parts += missing(records, file.parent)
    points = [record for chart in charts for record in chart.records]
    if points:
        parts += ["## Settings that all points share", "", *shared_settings(points), ""]
    with writing(file) as unfinished:
        unfinished.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def section(chart: Chart, figure: Path | None, folder: Path, against: str) -> list[str]:
    n_seeds = {len(mark.seeds) for curve in chart.curves for mark in curve.marks}
    errors = ["the measure's standard error"] if 1 in n_seeds or not n_seeds else []
    errors += ["the standard deviation over the seeds where there are several"] if n_seeds - {1} else []
    rows = rows_of(chart, chart.accuracies)
    return [
        f"## {chart.name}",
        "",
        *(
            [f"![curve]({beside(figure, folder)})", ""]
            if figure
            else ["There is neither accuracy nor perplexity.", ""]
        ),
        *markdown(["", ""], what_was_run(chart)),
        "",
        *markdown(rows[0], rows[1:]),
        "",
        f"± is {', or '.join(errors)}. Heads and neurons: the share that was skipped, over the whole model. "
        "Nats over dense: log perplexity less that of the dense model.",
        *(f"- {note}" for note in chart.notes),
        "",
        *paired_section(chart, against),
        "### Where the points come from",
        "",
        *markdown(["point", "run record", "overrides"], [origin(record, folder) for record in chart.records]),
        "",
    ]


def opening(chart: Chart, name: str, legend: str, figure: Path | None, folder: Path) -> list[str]:
    """Of a section that is no curve's: its title, its figure of that name, what its words mean, its notes."""
    lines = [f"## {chart.name}", ""]
    if figure:
        lines += [f"![{name}]({beside(figure, folder)})", ""]
    lines += [legend, ""]
    return [*lines, *(f"- {note}" for note in chart.notes), *([""] if chart.notes else [])]


def titled(tables: Iterable[tuple[str, list[list[str]]]]) -> list[str]:
    """tables: each with its title, the header first."""
    lines: list[str] = []
    for title, (header, *rows) in tables:
        lines += [f"### {title}", "", *markdown(header, rows), ""]
    return lines


def closing(chart: Chart, against: str) -> list[str]:
    lines = [*paired_section(chart, against), "### What was run", ""]
    return [*lines, *markdown(["", ""], what_was_run(chart)), ""]


def what_was_run(chart: Chart) -> list[list[str]]:
    points = [record.point for record in chart.records]
    fresh = [record for record in chart.records if record.reused_from is None]
    n_reused = len(points) - len(fresh)
    versions = [
        f"{name} {version}" for record in chart.records for name, version in sorted(record.versions.items())
    ]
    return [
        ["model", chart.model],
        ["data", chart.data],
        ["scorer", distinct(point.scorer for point in points)],
        ["criterion", distinct(point.criterion for point in points)],
        ["decided at", distinct(point.decided_at for point in points)],
        ["scope of ranking", distinct(point.scope for point in points)],
        ["level", ", ".join(f"{level:g}" for level in sorted({point.level for point in points}))],
        ["seed", distinct(str(point.seed) for point in points)],
        ["commit", distinct(record.commit for record in chart.records)],
        ["versions", distinct(versions)],
        [
            "time",
            f"{duration(sum(record.seconds for record in fresh))} in {len(fresh)} jobs"
            + (f"; {n_reused} points reused" if n_reused else ""),
        ],
    ]


def origin(record: Record, folder: Path) -> list[str]:
    point = record.point
    words = [point.scorer, point.criterion, point.decided_at, point.scope, f"level {point.level:g}"]
    reused = f", reused from {record.reused_from}" if record.reused_from else ""
    return [
        f"{', '.join(words)}, seed {point.seed}",
        f"{beside(record.file, folder)}{reused}",
        f"`{' '.join(record.overrides)}`" if record.overrides else "",
    ]


def missing(records: Records, folder: Path) -> list[str]:
    lines = []
    if records.failed:
        lines += [f"## Failed jobs: {len(records.failed)}", ""]
        for failure in records.failed:
            overrides = f" (`{' '.join(failure.overrides)}`)" if failure.overrides else ""
            lines.append(f"- {beside(failure.file, folder)}{overrides}: {' '.join(failure.cause.split())}")
        lines.append("")
    if records.silent:
        lines += [
            f"## Jobs without a record: {len(records.silent)}",
            "",
            "They are still running, or were killed.",
            "",
        ]
        lines += [*(f"- {beside(job, folder)}" for job in records.silent), ""]
    return lines


def shared_settings(records: list[Record]) -> list[str]:
    flat = [flatten(record.settings) for record in records]
    shared = {key: text for key, text in flat[0].items() if all(other.get(key) == text for other in flat)}
    told = sorted(item for item in shared.items() if not item[0].startswith(OFFERED))
    return ["```", *(f"{key} = {text}" for key, text in told), "```"]


def flatten(settings: dict, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat


def distinct(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def beside(path: Path, folder: Path) -> str:
    """The path as seen from the report, so that a moved sweep keeps its links."""
    return Path(os.path.relpath(path, folder.resolve())).as_posix()
