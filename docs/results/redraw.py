"""Figures of results whose run records are gone, anew from the CSV beside each: python docs/results/redraw.py

Byte shares were not recorded then: the axis is the share of heads and neurons that was skipped.
"""

import csv
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from shadow.sweeps.curves.chart import Chart
from shadow.sweeps.differences.nats import NATS
from shadow.sweeps.differences.paired import Difference
from shadow.sweeps.figures.panels import Axis, Cell, Figure, Heat, Level, Line, Plot, Spot
from shadow.sweeps.figures.png import draw, save
from shadow.sweeps.reports.cells import axis_of
from shadow.sweeps.reports.predictors import report as predictors
from shadow.sweeps.reports.predictors.survey import Entry, Net, Survey

HERE = Path(__file__).parent
SKIPPED = Axis("share of the heads and neurons that is skipped", "percent")
SEEDS = 3
Row = dict[str, str]
Key = TypeVar("Key")


class Drawn(Entry):
    """Its weight bytes are not known; a PNG does not say them."""

    @property
    def bytes_skipped(self) -> float:
        return math.nan


def rows_of(file: str) -> list[Row]:
    with open(HERE / file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def by(key: Callable[[Row], Key], rows: Iterable[Row]) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def skipped(row: Row, kinds: str = "head+neuron") -> float:
    shares = [float(row[f"achieved_{kind}"]) for kind in kinds.split("+")]
    return sum(shares) / len(shares)


def spot(row: Row, kinds: str = "head+neuron") -> Spot:
    return Spot(skipped(row, kinds), float(row["value"]), float(row["stderr"]) if row["stderr"] else None)


def tasks() -> Figure:
    rows = [row for row in rows_of("tasks/curve.csv") if row["metric"] == "mean/acc"]
    dense = next(row for row in rows if float(row["level"]) == 0)
    level = Level(float(dense["value"]), float(dense["stderr"]))
    curves = by(
        lambda row: f"{row['scorer']}, {row['decided_at']}", (row for row in rows if row["level"] != "0.0")
    )
    lines = [Line(name, [spot(row) for row in found], start=(0.0, level.y)) for name, found in curves.items()]
    y = axis_of("mean/acc")
    plot = Plot(f"{y.title} of 7 tasks", SKIPPED, y, lines, {"dense": level})
    return Figure("smollm2-135m on tasks, l2_deviation, ranked per layer", [[plot]])


def criteria(file: str, metric: str) -> Figure:
    """A row for each scorer, a column for each set of kinds."""
    rows = [row for row in rows_of(file) if row["metric"] == metric]
    dense = next(float(row["value"]) for row in rows if row["scorer"] == "dense")
    blocks = by(lambda row: (row["scorer"], row["kinds"]), (row for row in rows if row["scorer"] != "dense"))
    kinds = list(dict.fromkeys(kinds for _, kinds in blocks))

    def plot(scorer: str, pruned: str) -> Plot:
        curves = by(lambda row: row["criterion"], blocks[scorer, pruned])
        ranked = sorted(curves, key=lambda name: sum(float(row["value"]) for row in curves[name]))
        lines = [
            Line(name, [spot(row, pruned) for row in curves[name] if math.isfinite(float(row["value"]))],
                 neutral=name == "random", start=(0.0, dense))
            for name in ranked
        ]  # fmt: skip
        words = " and ".join(f"{kind}s" for kind in pruned.split("+"))
        shown = NATS if metric == "nats_over_dense" else metric
        return Plot(
            f"{scorer}: {words}",
            SKIPPED._replace(title="share of them that is skipped"),
            axis_of(shown),
            lines,
        )

    scorers = list(dict.fromkeys(scorer for scorer, _ in blocks))
    return Figure(
        "smollm2-135m on text", [[plot(scorer, one) for one in kinds] for scorer in scorers], shared=True
    )


def grid(file: str, name: str) -> Figure:
    """Nats by the place where plans are decided, and once how well scores are ranked."""
    rows = rows_of(file)
    criteria, scorers = (list(dict.fromkeys(row[part] for row in rows)) for part in ("criterion", "scorer"))

    def heat(title: str, unit: str, found: list[Row]) -> Heat:
        cells = [Cell(row["criterion"], row["scorer"], float(row["value"]), "") for row in found]
        return Heat(title, criteria, scorers, cells, unit, low_is_bad=unit == "Spearman")

    places = by(lambda row: row["decided_at"], (row for row in rows if row["unit"] == "nats over dense"))
    panels = [heat(f"nats, decided at {place}", "nats over dense", found) for place, found in places.items()]
    ranks = by(lambda row: row["decided_at"], (row for row in rows if row["unit"] != "nats over dense"))
    first = next(iter(ranks.values()))  # the same wherever plans are decided
    return Figure(name, [[*panels, heat("Spearman of scores, wherever", "Spearman", first)]])


def survey(*files: str) -> Figure:
    """A file of one more seed adds it to those that the first does not have in full."""
    parts = ("scorer", "decided_at", "feeding", "taps", "rank", "level")
    rows = by(
        lambda row: tuple(row[part] for part in parts), (row for file in files for row in rows_of(file))
    )
    entries = []
    for row, *others in rows.values():
        found = [row, *others] if int(row["seeds"]) < SEEDS else [row]
        size = (int(row["taps"]), int(row["rank"]), int(row["parameters"])) if row["taps"] else None
        net = Net(*size, float(row["share_of_model"]), row["feeding"]) if size else None
        values = tuple(value for one in found for value in seeds_of(one))
        over = Difference(values, float(row["stderr"]))
        name = f"{row['scorer']}, {row['decided_at']}"
        entries.append(Drawn(name, name, float(row["level"]), net, over, []))
    name = f"{row['model']} on {row['data']}"
    chart = Chart(row["model"], row["data"], [], None, [], [], None, [])
    return Figure(name, predictors.rows_of_panels(Survey(chart, entries)))


def seeds_of(row: Row) -> list[float]:
    """The nats of each, from their mean, the lowest and the highest of at most three."""
    mean, low, high = (float(row[name]) for name in ("nats_over_dense", "lowest_seed", "highest_seed"))
    return {1: [mean], 2: [low, high], 3: [low, 3 * mean - low - high, high]}[int(row["seeds"])]


def main() -> None:
    figures = {
        "tasks/curve.png": tasks(),
        "criteria/criteria.png": criteria("criteria/criteria.csv", "nats_over_dense"),
        "criteria/tasks.png": criteria("criteria/tasks.csv", "mean/acc"),
        "grid/grid.png": grid("grid/grid.csv", "opt-mini on builtin"),
        "grid/smollm2.png": grid("grid/smollm2.csv", "smollm2-135m on text"),
        "predictors/predictors.png": survey("predictors/predictors.csv", "predictors/seed_1.csv"),
        "opt_mini/predictors.png": survey("opt_mini/predictors.csv"),
    }
    for file, figure in figures.items():
        drawing = draw(figure)
        assert drawing is not None, file
        save(drawing, HERE / file)


if __name__ == "__main__":
    main()
