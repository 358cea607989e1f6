"""How numbers read in a table."""

import math
from collections.abc import Callable, Iterable

from ..curves.curve import Mark
from ..differences.nats import NATS
from ..differences.paired import Difference
from ..figures.panels import Axis
from ..records.kinds import kinds_in, plural
from ..records.metrics import (
    GEOMETRIC_MEAN,
    HEADERS,
    MEAN_ACCURACY,
    SPEED,
    is_accuracy,
    is_perplexity,
    is_share,
)
from ..records.record import Measured, Record

MISSING = "-"
BYTES = Axis("weight bytes not read per decoded token", "percent")  # the x axis of curves


def cell(measured: Measured | None, show: Callable[[float], str]) -> str:
    if measured is None:
        return MISSING
    return show(measured.value) + ("" if measured.stderr is None else f" ± {show(measured.stderr)}")


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def perplexity(value: float) -> str:
    """One decimal; four digits that count when large."""
    if not math.isfinite(value) or value >= 1e6:
        return f"{value:.3e}"
    return f"{value:.1f}" if value < 1000 else f"{float(f'{value:.4g}'):.0f}"


def metric_cell(measured: Measured | None, metric: str) -> str:
    if metric == NATS and measured is not None:
        value = round(measured.value, 3) + 0.0  # no -0.000
        return f"{'' if value < 0 else '+'}{cell(Measured(value, measured.stderr), '{:.3f}'.format)}"
    if metric == "kl":
        return cell(measured, "{:.3f}".format)
    if metric == SPEED:
        return cell(measured, "{:.1f}".format)
    if is_share(metric) or metric == "top1":
        return cell(measured, percent)
    return cell(measured, perplexity if is_perplexity(metric) else "{:.3f}".format)


def over_dense(mark: Mark) -> str:
    over = mark.over_dense
    return MISSING if over is None or math.isnan(over.value) else f"{over.value:+.3f}"


def difference_cell(difference: Difference, scale: int = 1, digits: int = 3) -> str:
    """Its mean over seeds ± the error of the examples (lowest to highest seed)."""
    values, stderr = difference.values, difference.stderr
    text = f"{scale * difference.mean:+.{digits}f}"
    text += "" if stderr is None else f" ± {scale * stderr:.{digits}f}"
    if len(values) > 1:
        low, high = (f"{scale * end:+.{digits}f}" for end in (min(values), max(values)))
        text += f" ({low} to {high})"
    return text


def metric_name(metric: str) -> str:
    if is_share(metric):
        means = {MEAN_ACCURACY: "mean accuracy", GEOMETRIC_MEAN: "geometric mean"}
        return f"{means.get(metric, metric)} %"
    return "nats" if metric == NATS else HEADERS.get(metric, metric)


def axis_of(metric: str) -> Axis:
    if metric == NATS:
        return Axis("nats over dense", "nats")
    if not is_accuracy(metric):
        return Axis(metric.replace("_", " "), "log")
    means = {MEAN_ACCURACY: "mean accuracy", GEOMETRIC_MEAN: "geometric mean accuracy"}
    return Axis(means.get(metric, f"accuracy on {metric.split('/')[0]}"), "percent")


def share_columns(records: Iterable[Record]) -> list[str]:
    """The kinds that records have, for `share_header` and `share_cells`."""
    return kinds_in(record.achieved for record in records)


def share_header(kinds: Iterable[str]) -> list[str]:
    return ["bytes %", "of layers %", *(f"{plural(kind)} %" for kind in kinds)]


def share_cells(mark: Mark, kinds: Iterable[str]) -> list[str]:
    """Weight bytes not read of all and of the layers alone, and units skipped of each kind."""
    shares = mark.bytes.skipped, mark.bytes.skipped_of_layers, *map(mark.achieved.get, kinds)
    return list(map(percent, shares))


def hover(mark: Mark) -> list[str]:
    """What a point of a figure says of where it is."""
    bytes_by_kind = [f"of it {plural(k)} {percent(share)} %" for k, share in mark.bytes.by_kind.items()]
    added = [f"predictors and factors add {percent(mark.bytes.added)} %"] if mark.bytes.added else []
    return [
        f"weight bytes not read {percent(mark.bytes.skipped)} %",
        *bytes_by_kind,
        *added,
        *(f"{plural(kind)} skipped {percent(share)} %" for kind, share in mark.achieved.items()),
        f"nominal level {mark.level:g}, sparse tokens {mark.tokens}, scored {mark.scored}",
        f"seed {', '.join(map(str, mark.seeds))}",
    ]
