"""The table that a measurement ends with, and where its record lies."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from shadow.jobs import point_records
from shadow.jobs.missing import dense_command
from shadow.sweeps.differences.paired import Difference, difference
from shadow.sweeps.records.metrics import is_perplexity, is_share
from shadow.sweeps.records.reading import load
from shadow.sweeps.records.reading import record as read
from shadow.sweeps.records.record import Measured, Record
from shadow.sweeps.reports.cells import MISSING, cell, difference_cell, metric_cell, metric_name, percent
from shadow.sweeps.reports.markdown import aligned
from shadow.terminal.digits import digits

log = logging.getLogger(__name__)

Rows = list[list[str]]  # of a table, the header first
LATENCY, CONTEXT, JUDGED = "latency/", "rank_variance/", ("quality", "quality_size", "quality_static")
SPREAD = ("", "_low", "_high")  # of a time: its median and quartiles


def tell(cfg: DictConfig, told: dict[str, Any]) -> None:
    """told: the run record, whose samples are written. Of a job in a sweep the sweep says a line."""
    dense = point_records.dense_beside(cfg, told)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return
    file = Path(cfg.paths.output_dir) / "run.json"
    ours = read(file, told | {"seconds": 0.0})
    beside = read(dense, load(dense)) if dense else None
    lines = [heading(ours), *(line for table in tables(ours, beside) for line in ["", *aligned(table)]), ""]
    if beside is None and ours.point.level > 0:
        lines += [f"dense is not measured yet: {dense_command()}"]
    log.info("%s", "\n".join([*lines, f"-> {file}"]))


def heading(ours: Record) -> str:
    point = ours.point
    if point.level == 0:
        return f"the dense model, {point.model} on {point.data}"
    skipped = ", ".join(f"{kind}s {percent(share)} %" for kind, share in ours.achieved.items())
    return (
        f"{point.scorer} at level {point.level:g}, {point.model} on {point.data}: weight bytes not read "
        f"{percent(ours.bytes.skipped)} %, skipped {skipped}; sparse tokens: {point.tokens}, scored: "
        f"{point.scored}"
    )


def tables(ours: Record, dense: Record | None) -> list[Rows]:
    """One for what can be compared with the dense model, and one for each measure that has another shape."""
    apart = (LATENCY, CONTEXT, *(f"{name}/" for name in JUDGED))
    found = [beside_dense(ours, dense, [name for name in ours.metrics if not name.startswith(apart)])]
    found.append(times(ours))
    found += [agreements(ours, judged) for judged in JUDGED]
    found.append(variances(ours))
    return [table for table in found if len(table) > 1]


def beside_dense(ours: Record, dense: Record | None, names: Sequence[str]) -> Rows:
    if ours.point.level == 0:
        return [["metric", "value"], *([metric_name(n), metric_cell(ours.metrics[n], n)] for n in names)]
    rows = [["metric", "value", "dense", "difference"]]
    for name in names:
        theirs = dense.metrics.get(name) if dense else None
        less = difference([(ours, dense)], name) if dense else None
        cells = metric_cell(ours.metrics[name], name), metric_cell(theirs, name), shown(less, name)
        rows.append([metric_name(name), *cells])
    return rows


def shown(less: Difference | None, name: str) -> str:
    """Of accuracies in points."""
    if less is None:
        return MISSING
    if is_share(name):
        return difference_cell(less, 100, 1)
    return difference_cell(less) + (" nats" if is_perplexity(name) else "")


def times(ours: Record) -> Rows:
    """Medians and quartiles; what has none stands alone."""
    names = [name for name in ours.metrics if name.startswith(LATENCY)]
    rows = [["latency", "median", "lower quartile", "upper quartile"]]
    for name in names:
        if not name.endswith(SPREAD[1:]):
            found = [ours.metrics.get(name + end) for end in SPREAD]
            cells = [MISSING if one is None else digits(one.value) for one in found]
            rows.append([name.removeprefix(LATENCY).replace("_", " "), *cells])
    return rows


def agreements(ours: Record, judged: str) -> Rows:
    """A row for each criterion. judged: as `criterion_quality` names what it is compared with."""
    found = {tuple(n.split("/")[1:]): m for n, m in ours.metrics.items() if n.startswith(f"{judged}/")}
    columns = list(dict.fromkeys((kind, metric) for _, kind, metric in found))
    rows = [[judged.replace("_", " "), *(f"{kind}s: {metric}" for kind, metric in columns)]]
    for criterion in dict.fromkeys(name for name, _, _ in found):
        cells = [found.get((criterion, *column)) for column in columns]
        rows.append([criterion, *(with_error(one) for one in cells)])
    return rows


def variances(ours: Record) -> Rows:
    """A row for each layer."""
    found = {tuple(n.split("/")[1:]): m for n, m in ours.metrics.items() if n.startswith(CONTEXT)}
    criteria = list(dict.fromkeys(name for name, _ in found))
    rows = [["variance of ranks, layer", *criteria]]
    for layer in dict.fromkeys(layer for _, layer in found):
        rows.append([layer, *(with_error(found.get((name, layer))) for name in criteria)])
    return rows


def with_error(measured: Measured | None) -> str:
    return cell(measured, "{:.3f}".format)
