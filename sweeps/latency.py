"""From records to accuracy against speed: of each point the quality of its plans, and how fast they ran."""

from dataclasses import dataclass

from sweeps.curves import Chart, Mark, chart
from sweeps.files import Cell
from sweeps.points import by_place, tidy
from sweeps.records import Measured, Record

TIMES, LOW, HIGH = "latency/times_dense", "latency/times_dense_low", "latency/times_dense_high"
TOKEN, ROOFLINE = "latency/token_ms", "latency/roofline"
COLUMNS = (
    *("model", "data", "scorer", "level", "achieved_head", "achieved_neuron", "token_ms"),
    *("times_dense", "low", "high", "roofline", "metric", "value", "stderr"),
)
ALL = "everything stays"  # level 0: what is faster then is the executor


@dataclass(frozen=True)
class Timed:
    """A level of a curve that was timed. label: the curve's, ALL at level 0."""

    label: str
    mark: Mark

    def value(self, metric: str) -> float:
        return self.mark.metrics[metric].value


@dataclass(frozen=True)
class Race:
    """One model on one data set. timed: by curve, then by level."""

    chart: Chart
    timed: list[Timed]

    @property
    def qualities(self) -> list[str]:
        """Names of the metrics that stand against speed: perplexity, and the first accuracy."""
        names = [self.chart.perplexity, *self.chart.accuracies[:1]]
        return [name for name in names if name is not None]


def find_races(records: list[Record]) -> list[Race]:
    return [race(group) for group in by_place(tidy(records))]


def race(records: list[Record]) -> Race:
    found = chart(records)
    marks = [Timed(curve.label, mark) for curve in found.curves for mark in curve.marks]
    if found.dense:
        marks.insert(0, Timed(ALL, found.dense))
    return Race(found, [one for one in marks if TIMES in one.mark.metrics])


def rows_of(found: Race) -> list[list[Cell]]:
    """The values of COLUMNS, for each point and quality."""
    return [
        [
            *(found.chart.model, found.chart.data, one.label, one.mark.level),
            *(one.mark.achieved.get("head"), one.mark.achieved.get("neuron")),
            *(one.value(name) for name in (TOKEN, TIMES, LOW, HIGH, ROOFLINE)),
            *(quality, measured.value, measured.stderr),
        ]
        for one in found.timed
        for quality in found.qualities
        if (measured := one.mark.metrics.get(quality))
    ]


def told(measured: Measured | None, digits: int) -> str:
    if measured is None:
        return "-"
    error = "" if measured.stderr is None else f" ± {measured.stderr:.{digits}f}"
    return f"{measured.value:.{digits}f}{error}"
