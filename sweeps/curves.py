"""From points to curves."""

import math
import statistics
from dataclasses import dataclass, replace

from sweeps.nats import over_dense
from sweeps.paired import leaves_out_prompts
from sweeps.points import by_place, drawn_metrics, is_accuracy, is_perplexity
from sweeps.records import Measured, Record

# times dense: a model that is 3.4 nats worse is broken, and how broken must not squash the others
CEILING = 30.0


@dataclass(frozen=True)
class Mark:
    """One level of a curve. Spread of a metric: over `seeds` if they are several, else the measure's own.

    over_dense: nats, where the dense model was measured on the same examples.
    """

    level: float
    achieved: dict[str, float]
    metrics: dict[str, Measured]
    seeds: tuple[int, ...]
    over_dense: float | None = None

    @property
    def sparsity(self) -> float:
        """The mean of the shares of heads and of neurons that were skipped."""
        return statistics.fmean(self.achieved.values()) if self.achieved else 0.0


@dataclass(frozen=True)
class Curve:
    label: str
    marks: list[Mark]  # by level; the dense model is not among them


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


def find_charts(records: list[Record]) -> list[Chart]:
    """Tidy records -> a chart for each model and data set, in the order of the records."""
    charts = [chart(group) for group in by_place(records)]
    return [replace(found, notes=[*found.notes, *leaving(found)]) for found in charts]


def chart(records: list[Record]) -> Chart:
    """Tidy records of one model and data set."""
    perplexity, accuracies = drawn_metrics(records)
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
    """Of each curve the records of each level, one for each seed; its label tells what varies."""
    sparse = [record for record in records if record.point.level > 0]
    varying = [
        name
        for name in ("criterion", "decided_at", "scope")
        if len({getattr(record.point, name) for record in sparse}) > 1
    ]
    found: dict[str, dict[float, list[Record]]] = {}
    for record in sparse:
        label = ", ".join([record.point.scorer, *(getattr(record.point, name) for name in varying)])
        found.setdefault(label, {}).setdefault(record.point.level, []).append(record)
    return found


def find_dense(records: list[Record]) -> tuple[Mark | None, list[str]]:
    """Every scorer may have measured the dense model: once per seed is enough, if they agree.

    With the whole windows, if it was measured so.
    """
    by_seed: dict[int, Record] = {}
    notes: list[str] = []
    whole = [record for record in records if not leaves_out_prompts(record)]
    of_text = any(is_perplexity(name) for record in records for name in record.metrics)
    if of_text and 0 < len(whole) < len(records):
        notes.append(
            "Plans that are decided at the prompt leave it out of the loss: compare their perplexity only "
            "with the dense model's that does so too, as nats over dense and differences do."
        )
    for record in whole or records:
        first = by_seed.setdefault(record.point.seed, record)
        for name in filter(record.metrics.__contains__, first.metrics):
            if not (is_accuracy(name) or is_perplexity(name)):
                continue  # seconds never agree
            ours, theirs = first.metrics[name].value, record.metrics[name].value
            if not math.isclose(ours, theirs, rel_tol=1e-3):
                notes.append(
                    f"Level 0 is not one model: {name} is {ours:.6g} for {first.point.scorer} and "
                    f"{theirs:.6g} for {record.point.scorer}, both with seed {record.point.seed}; "
                    "the first is called dense here."
                )
        by_seed[record.point.seed] = replace(first, metrics=record.metrics | first.metrics)
    return (mark(list(by_seed.values())) if by_seed else None), notes


def beside_dense(points: list[Record], records: list[Record], perplexity: str | None) -> Mark:
    """points: alike but for the seed, among records that may have the dense ones."""
    over = over_dense(points, records, perplexity) if perplexity else None
    return replace(mark(points), over_dense=over.mean if over else None)


def mark(records: list[Record]) -> Mark:
    """Records that differ in nothing but the seed -> their mean."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    kinds = list(dict.fromkeys(kind for record in records for kind in record.achieved))
    return Mark(
        level=records[0].point.level,
        achieved={k: statistics.fmean(r.achieved[k] for r in records if k in r.achieved) for k in kinds},
        metrics={n: over_seeds([r.metrics[n] for r in records if n in r.metrics]) for n in names},
        seeds=tuple(sorted(record.point.seed for record in records)),
    )


def over_seeds(measured: list[Measured]) -> Measured:
    if len(measured) == 1:
        return measured[0]
    values = [one.value for one in measured]
    spread = statistics.stdev(values) if all(map(math.isfinite, values)) else None
    return Measured(statistics.fmean(values), spread)


def ceiling(chart: Chart) -> float:
    """The highest perplexity that is drawn; without a dense model, the best point stands in for it."""
    assert chart.perplexity is not None
    dense = finite([chart.dense] if chart.dense else [], chart.perplexity)
    sparse = finite([mark for curve in chart.curves for mark in curve.marks], chart.perplexity)
    return CEILING * min(dense or sparse, default=0.0)


def finite(marks: list[Mark], metric: str) -> list[float]:
    values = [mark.metrics[metric].value for mark in marks if metric in mark.metrics]
    return list(filter(math.isfinite, values))


def leaving(chart: Chart) -> list[str]:
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
