"""Accuracy against speed of the same plans: latency.csv, .png, .md and .html."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sweeps import study
from sweeps.curves import Chart, Mark, chart
from sweeps.hover import axis_of
from sweeps.panels import Axis, Line, Plot, Spot
from sweeps.points import by_place, is_accuracy, tidy
from sweeps.rebuild import Rebuilt
from sweeps.records import Record
from sweeps.reports import AGAINST
from sweeps.study import Study
from sweeps.table import cell

TIMES, LOW, HIGH = "latency/times_dense", "latency/times_dense_low", "latency/times_dense_high"
TOKEN, ROOFLINE = "latency/token_ms", "latency/roofline"
DENSE, ALL = "dense transformers", "everything stays"  # level 0: what is faster then is the executor
SHOW = {True: "{:.3f}".format, False: "{:.2f}".format}  # an accuracy, or a perplexity
LEGEND = (
    "Of each plan its quality and its speed, by the same executor in the same process. Times dense: a token "
    "of dense transformers over a token of this, by turns; the median over rounds, and their quartiles. "
    "Roofline: bytes of weights that a dense token reads over those of this one, predictor included. "
    "Where everything stays, what is faster is the executor alone."
)


class Timed(NamedTuple):
    """A level of a curve that was timed. label: the curve's, ALL at level 0."""

    label: str
    mark: Mark

    def value(self, metric: str) -> float:
        return self.mark.metrics[metric].value


def rebuild(folders: Iterable[Path], out: Path, against: str = AGAINST) -> Rebuilt:
    return study.write("latency", "Accuracy against speed", LEGEND, find_studies, folders, out, against)


def summary(folders: Iterable[Path], against: str = AGAINST) -> str:
    return study.told(find_studies, folders)


def find_studies(records: list[Record]) -> list[Study]:
    """Records as they were read -> a study for each model and data set."""
    return [of_chart(chart(group)) for group in by_place(tidy(records))]


def of_chart(found: Chart) -> Study:
    """A panel for perplexity and for the first accuracy; a line for each curve."""
    marks = [Timed(curve.label, mark) for curve in found.curves for mark in curve.marks]
    if found.dense:
        marks.insert(0, Timed(ALL, found.dense))
    timed = [one for one in marks if TIMES in one.mark.metrics]
    names = [found.perplexity, *found.accuracies[:1]]
    qualities = [name for name in names if name is not None]
    return Study(
        found, [panel(timed, quality) for quality in qualities], [("Points", table(timed, qualities))]
    )


def panel(timed: list[Timed], quality: str) -> Plot:
    x, y = Axis("times as fast as dense, a token"), axis_of(quality)
    measured = [one for one in timed if quality in one.mark.metrics]
    lines = []
    for label in dict.fromkeys(one.label for one in measured):
        spots = [spot(one, quality) for one in measured if one.label == label]
        if label == ALL:
            lines.append(Line(DENSE, [Spot(1.0, spots[0].y, None, DENSE)]))
        lines.append(Line(label, spots))
    return Plot(y.title, x, y, lines)


def spot(one: Timed, quality: str) -> Spot:
    value, stderr = one.mark.metrics[quality]
    told = f"level {one.mark.level:g}<br>{one.value(TOKEN):.1f} ms a token<br>{times(one)} times dense"
    return Spot(one.value(TIMES), value, stderr, told)


def table(timed: list[Timed], qualities: list[str]) -> list[list[str]]:
    """The header, then every point that was timed."""
    rows = [["scorer", "level", "heads %", "neurons %", *qualities, "ms a token", "times dense", "roofline"]]
    for one in timed:
        gone = [f"{100 * one.mark.achieved.get(kind, 0):.1f}" for kind in ("head", "neuron")]
        quality = [cell(one.mark.metrics.get(name), SHOW[is_accuracy(name)]) for name in qualities]
        speed = [f"{one.value(TOKEN):.1f}", times(one), f"{one.value(ROOFLINE):.2f}"]
        rows.append([one.label, f"{one.mark.level:g}", *gone, *quality, *speed])
    return rows


def times(one: Timed) -> str:
    return f"{one.value(TIMES):.2f} ({one.value(LOW):.2f} to {one.value(HIGH):.2f})"
