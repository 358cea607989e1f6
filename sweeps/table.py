"""From a chart to rows of text."""

import math
from collections.abc import Callable
from dataclasses import replace

from sweeps.curves import Chart, Mark
from sweeps.markdown import aligned
from sweeps.records import Measured, Records


def table(chart: Chart) -> str:
    """For the console: aligned, and with the first accuracy only."""
    rows = rows_of(chart, chart.accuracies[:1])
    lines = aligned(rows)
    return "\n".join([chart.name, lines[0], "-" * len(lines[0]), *lines[1:], *chart.notes])


def summary(records: Records, charts: list[Chart]) -> str:
    """All that a person at the console wants to know of a sweep."""
    lines = [table(chart) for chart in charts]
    return "\n".join(["", *lines, *unfinished(records)])


def unfinished(records: Records) -> list[str]:
    lines = [
        f"failed: {failure.file} ({' '.join(failure.overrides)}): {failure.cause}"
        for failure in records.failed
    ]
    return lines + [f"no record yet: {job}" for job in records.silent]


def rows_of(chart: Chart, accuracies: list[str]) -> list[list[str]]:
    """The header, then a row for each level of each curve; the dense model comes once, first."""
    labelled = [("dense", replace(chart.dense, over_dense=0.0))] if chart.dense else []
    labelled += [(curve.label, mark) for curve in chart.curves for mark in curve.marks]
    several_seeds = any(len(mark.seeds) > 1 for _, mark in labelled)
    header = ["scorer", "level", *(["seeds"] if several_seeds else []), "heads %", "neurons %"]
    header += [chart.perplexity, "nats over dense"] if chart.perplexity else []
    rows = [[*header, *(f"{name} %" for name in accuracies)]]
    for label, mark in labelled:
        row = [label, f"{mark.level:g}", *([str(len(mark.seeds))] if several_seeds else [])]
        row += [percent(mark.achieved[kind]) if kind in mark.achieved else "-" for kind in ("head", "neuron")]
        if chart.perplexity:
            row += [
                cell(mark.metrics.get(chart.perplexity), perplexity),
                over_dense(mark),
            ]
        rows.append(row + [cell(mark.metrics.get(name), percent) for name in accuracies])
    return rows


def cell(measured: Measured | None, show: Callable[[float], str]) -> str:
    if measured is None:
        return "-"
    return show(measured.value) + ("" if measured.stderr is None else f" ± {show(measured.stderr)}")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def perplexity(value: float) -> str:
    """One decimal; four digits that count when large."""
    if not math.isfinite(value) or value >= 1e6:
        return f"{value:.3e}"
    return f"{value:.1f}" if value < 1000 else f"{float(f'{value:.4g}'):.0f}"


def over_dense(mark: Mark) -> str:
    over = mark.over_dense
    return "-" if over is None or math.isnan(over) else f"{over:+.3f}"
