"""How much the ranks of heads vary over inputs: context.csv, .png, .md and .html."""

import statistics

from ..curves.chart import chart
from ..figures.panels import Axis, Figure, Level, Line, Plot, Spot, in_rows
from ..records.merging import by_place
from ..records.record import Record
from .paired_table import paired_tables
from .panels_csv import COLUMNS, rows_of
from .provenance import what_was_run
from .report import Report, Section, Table

FILE = "context.csv"
FAMILY = "rank_variance"
VARIANCE = Axis("variance of the rank, of a random one's")
RANDOM = "random ranking"
LEGEND = (
    "The variance over windows of a head's rank among the heads of its layer, divided by that of a rank that "
    "is drawn anew for each window: 0, a head is equally important whatever the input; 1, its importance "
    "depends on nothing else. In the left panel the bars are the standard deviation over the layer's heads."
)


def sections(records: list[Record], against: str) -> list[Section]:
    return [of_place(group, against) for group in by_place(records)]


def of_place(records: list[Record], against: str) -> Section:
    """Two panels, with a line for each criterion: by layer, and heads in falling order."""
    heads = heads_of(records)
    by_layer = [
        Line(name, [layer_spot(at, layers[at]) for at in sorted(layers)]) for name, layers in heads.items()
    ]
    sorted_heads = []
    for name, layers in heads.items():
        values = sorted((value for of in layers.values() for value in of), reverse=True)
        spots = [Spot((n + 0.5) / len(values), value, None, f"{value:.3f}") for n, value in enumerate(values)]
        sorted_heads.append(Line(name, spots))
    random = {RANDOM: Level(1.0)} if heads else {}
    panels = [
        Plot("mean over the heads of a layer", Axis("layer"), VARIANCE, by_layer, random),
        Plot("all heads, in falling order", Axis("heads", "percent"), VARIANCE, sorted_heads, random),
    ]
    rows = [["criterion", "mean", "lowest layer", "highest layer", "heads above half of a random one's"]]
    for name, layers in heads.items():
        means = {at: statistics.fmean(of) for at, of in layers.items()}
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        every = [value for of in layers.values() for value in of]
        rows.append(
            [
                name,
                f"{statistics.fmean(every):.3f}",
                *(f"{means[at]:.3f} (layer {at})" for at in (low, high)),
                f"{100 * sum(value > 0.5 for value in every) / len(every):.0f} %",
            ]
        )
    found = chart(records)
    return Section(
        found,
        Figure(found.name, in_rows(panels)),
        LEGEND,
        [Table("Variance of ranks", rows), *paired_tables(found, against), what_was_run(found)],
        {FILE: rows_of(found, panels)},
    )


def heads_of(records: list[Record]) -> dict[str, dict[int, list[float]]]:
    """Of each criterion and layer the values of its heads; those of several records are averaged."""
    found: dict[str, dict[int, list[list[float]]]] = {}
    for record in records:
        for metric, values in record.samples.items():
            family, *words = metric.split("/")
            if family == FAMILY:
                criterion, layer = words
                found.setdefault(criterion, {}).setdefault(int(layer), []).append(values)
    return {
        criterion: {
            layer: [statistics.fmean(of) for of in zip(*values, strict=True)]
            for layer, values in layers.items()
        }
        for criterion, layers in found.items()
    }


def layer_spot(layer: int, values: list[float]) -> Spot:
    mean, spread = statistics.fmean(values), statistics.pstdev(values)
    text = f"layer {layer}: {mean:.3f}<br>heads from {min(values):.3f} to {max(values):.3f}"
    return Spot(layer, mean, spread, text)


REPORT = Report("context", "context", "How much importance depends on the input", {FILE: COLUMNS}, sections)
