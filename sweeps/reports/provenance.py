"""Where points come from: what was run, with which settings, and what failed."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..curves.chart import POSITIONS, Chart, varying
from ..duration import duration
from ..records.record import Record, Records
from .markdown import beside, markdown
from .report import Table

OFFERED = "recipe."  # what a sweep chooses from; what it chose is among the other settings
TITLES = {"tokens": "sparse tokens", "scored": "scored tokens"}


def what_was_run(chart: Chart, more: Iterable[list[str]] = ()) -> Table:
    points = [record.point for record in chart.records]
    sparse = [point for point in points if point.level > 0] or points
    fresh = [record for record in chart.records if record.reused_from is None]
    n_reused = len(points) - len(fresh)
    versions = [
        f"{name} {version}" for record in chart.records for name, version in sorted(record.versions.items())
    ]
    rows = [
        ["", ""],
        ["model", chart.model],
        ["data", chart.data],
        ["scorer", distinct(point.scorer for point in points)],
        ["criterion", distinct(point.criterion for point in points)],
        ["decided at", distinct(point.decided_at for point in points)],
        ["scope of ranking", distinct(point.scope for point in points)],
        *([TITLES[name], distinct(getattr(point, name) for point in sparse)] for name in POSITIONS),
        ["nominal level", ", ".join(f"{level:g}" for level in sorted({point.level for point in points}))],
        ["seed", distinct(str(point.seed) for point in points)],
        ["commit", distinct(record.commit for record in chart.records)],
        ["versions", distinct(versions)],
        [
            "time",
            f"{duration(sum(record.seconds for record in fresh))} in {len(fresh)} jobs"
            + (f"; {n_reused} points reused" if n_reused else ""),
        ],
        *more,
    ]
    return Table("What was run", rows, console_columns=0)


def positions(records: list[Record]) -> list[str]:
    """For the console: which tokens are sparse and which are scored, where all points agree."""
    shared = [name for name in POSITIONS if name not in varying(records, POSITIONS)]
    sparse = [record.point for record in records if record.point.level > 0]
    words = [f"{TITLES[name]}: {getattr(sparse[0], name)}" for name in shared] if sparse else []
    return [", ".join(words)] if words else []


def origins(records: list[Record], folder: Path) -> list[str]:
    rows = [origin(record, folder) for record in records]
    return ["### Where the points come from", "", *markdown(["point", "run record", "overrides"], rows), ""]


def origin(record: Record, folder: Path) -> list[str]:
    point = record.point
    words = [point.scorer, point.criterion, point.decided_at, point.scope, f"level {point.level:g}"]
    reused = f", reused from {record.reused_from}" if record.reused_from else ""
    return [
        f"{', '.join(words)}, seed {point.seed}",
        f"{beside(record.file, folder)}{reused}",
        f"`{' '.join(record.overrides)}`" if record.overrides else "",
    ]


def failures(records: Records, folder: Path) -> list[str]:
    lines = []
    if records.failed:
        lines += [f"## Failed jobs: {len(records.failed)}", ""]
        for failure in records.failed:
            overrides = f" (`{' '.join(failure.overrides)}`)" if failure.overrides else ""
            lines.append(f"- {beside(failure.file, folder)}{overrides}: {' '.join(failure.cause.split())}")
        lines.append("")
    if records.silent:
        lines += [f"## Jobs without a record: {len(records.silent)}", ""]
        lines += ["They are still running, or were killed.", ""]
        lines += [*(f"- {beside(job, folder)}" for job in records.silent), ""]
    return lines


def unfinished(records: Records) -> list[str]:
    """For the console."""
    lines = [
        f"failed: {failure.file} ({' '.join(failure.overrides)}): {failure.cause}"
        for failure in records.failed
    ]
    return lines + [f"no record yet: {job}" for job in records.silent]


def shared_settings(records: list[Record]) -> list[str]:
    flat = [flatten(record.settings) for record in records]
    shared = {key: text for key, text in flat[0].items() if all(other.get(key) == text for other in flat)}
    shown = sorted(item for item in shared.items() if not item[0].startswith(OFFERED))
    return ["```", *(f"{key} = {text}" for key, text in shown), "```"]


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
