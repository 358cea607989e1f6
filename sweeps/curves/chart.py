"""From points to the curves of one model on one data set."""

import math
from dataclasses import dataclass, replace

from ..differences.nats import over_dense
from ..records.merging import by_place
from ..records.metrics import curve_metrics
from ..records.record import Measured, Record
from .curve import Curve, Mark, mark
from .dense import find_dense

# times dense: a model that is 3.4 nats worse is broken, and how broken must not squash the others
CEILING = 30.0
PARTS = ("criterion", "decided_at", "scope")  # of a point: where they vary, labels have them
POSITIONS = ("tokens", "scored")  # of a point: which positions are sparse, and which are scored


@dataclass(frozen=True)
class Chart:
    """The curves of one model on one data set."""

    model: str
    data: str
    records: list[Record]
    dense: Mark | None
    curves: list[Curve]
    accuracies: list[str]  # names of metrics; the first is drawn
    perplexity: str | None
    notes: list[str]

    @property
    def name(self) -> str:
        return f"{self.model} on {self.data}"

    @property
    def n_points(self) -> int:
        """Levels of curves, however many seeds they have; the dense model is one."""
        return sum(len(levels) for levels in by_label(self.records).values()) + bool(self.dense)


def find_charts(records: list[Record]) -> list[Chart]:
    """One record per point -> a chart for each model and data set, in the order of the records."""
    charts = [chart(group) for group in by_place(records)]
    return [replace(found, notes=[*found.notes, *above_ceiling(found)]) for found in charts]


def chart(records: list[Record]) -> Chart:
    """One record per point, of one model and data set."""
    perplexity, accuracies = curve_metrics(records)
    dense, notes = find_dense([record for record in records if record.point.level == 0])
    return Chart(
        model=records[0].point.model,
        data=records[0].point.data,
        records=records,
        dense=dense,
        curves=[
            Curve(label, [beside_dense(levels[level], records, perplexity) for level in sorted(levels)])
            for label, levels in by_label(records).items()
        ],
        accuracies=accuracies,
        perplexity=perplexity,
        notes=notes,
    )


def by_label(records: list[Record]) -> dict[str, dict[float, list[Record]]]:
    """Of each curve the records of each level, one for each seed; its label has what varies."""
    names = label_parts(records)
    found: dict[str, dict[float, list[Record]]] = {}
    for record in records:
        if record.point.level > 0:
            label = ", ".join([record.point.scorer, *(getattr(record.point, name) for name in names)])
            found.setdefault(label, {}).setdefault(record.point.level, []).append(record)
    return found


def label_parts(records: list[Record]) -> list[str]:
    """What varies, but no positions that the rest tells, as where prompts decide and are left out."""
    names = varying(records, PARTS)
    sparse = [record.point for record in records if record.point.level > 0]

    def n_different(names: list[str]) -> int:
        return len({tuple(getattr(point, name) for name in names) for point in sparse})

    for name in varying(records, POSITIONS):
        if n_different([*names, name]) > n_different(names):
            names.append(name)
    return names


def varying(records: list[Record], names: tuple[str, ...]) -> list[str]:
    """Those parts of a point that differ between sparse ones."""
    sparse = [record.point for record in records if record.point.level > 0]
    return [name for name in names if len({getattr(point, name) for point in sparse}) > 1]


def beside_dense(points: list[Record], records: list[Record], perplexity: str | None) -> Mark:
    """points: alike but for the seed, among records that may have the dense ones."""
    over = over_dense(points, records, perplexity) if perplexity else None
    return replace(mark(points), over_dense=Measured(over.mean, over.stderr) if over else None)


def ceiling(chart: Chart) -> float:
    """The highest perplexity that is drawn; without a dense model, the best point stands in for it."""
    assert chart.perplexity is not None
    dense = finite([chart.dense] if chart.dense else [], chart.perplexity)
    sparse = finite([mark for curve in chart.curves for mark in curve.marks], chart.perplexity)
    return CEILING * min(dense or sparse, default=0.0)


def finite(marks: list[Mark], metric: str) -> list[float]:
    values = [mark.metrics[metric].value for mark in marks if metric in mark.metrics]
    return list(filter(math.isfinite, values))


def above_ceiling(chart: Chart) -> list[str]:
    """Says which curves go above the ceiling, and where."""
    if chart.perplexity is None:
        return []
    top, notes = ceiling(chart), []
    for curve in chart.curves:
        out = [
            (mark.level, mark.metrics[chart.perplexity].value)
            for mark in curve.marks
            if chart.perplexity in mark.metrics and mark.metrics[chart.perplexity].value > top
        ]
        if out:
            worst = max(value for _, value in out)
            levels = f"level {out[0][0]:g}" if len(out) == 1 else f"{len(out)} levels from {out[0][0]:g}"
            reached = f"{worst:,.0f}" if worst < 1e6 else f"{worst:.1e}"
            notes.append(f"{curve.label} leaves the perplexity plot at {levels} (reaches {reached}).")
    return notes
