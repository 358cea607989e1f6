"""From a rebuilt curve to Weights & Biases."""

import logging
from collections.abc import Iterator

from sweeps.curves import Chart, Curve
from sweeps.points import COLUMNS, rows_of
from sweeps.rebuild import Rebuilt
from sweeps.records import Record, RecordError

log = logging.getLogger(__name__)

TABLE = "curve"  # names of what a W&B Report finds again
SPARSITY = "achieved_sparsity"


def upload(rebuilt: Rebuilt) -> None:
    """One run beside those of the jobs: same project and group, job type `curve`."""
    import wandb  # here: wandb takes a second or two

    settings = logger_settings(rebuilt.records.done)
    run = wandb.init(
        project=settings.get("project"),
        entity=settings.get("entity"),
        group=settings.get("group"),
        tags=settings.get("tags"),
        job_type="curve",
        dir=rebuilt.report.parent,
        mode="offline" if settings.get("offline") else None,
    )
    try:
        run.define_metric(f"{TABLE}/*", step_metric=SPARSITY)
        for row in history(rebuilt.charts):
            run.log(row)
        run.log({TABLE: wandb.Table(columns=list(COLUMNS), data=rows_of(rebuilt.records.done))})
        run.log({figure.stem: wandb.Image(str(figure)) for figure in rebuilt.figures.values()})
        run.log({rebuilt.page.stem: wandb.Html(rebuilt.page.read_text(encoding="utf-8"))})
    finally:
        run.finish()
    log.info("logged the curve to wandb run %s of group %s", run.id, settings.get("group"))


def history(charts: list[Chart]) -> Iterator[dict[str, float]]:
    """A row for each mark, the dense one first of each curve, so that W&B can draw lines itself."""
    for chart in charts:
        for curve in chart.curves:
            for mark in [*([chart.dense] if chart.dense else []), *curve.marks]:
                figures = {series(chart, curve, name): one.value for name, one in mark.metrics.items()}
                yield {SPARSITY: mark.sparsity, **figures}


def series(chart: Chart, curve: Curve, metric: str) -> str:
    """What W&B calls a metric of a curve."""
    return f"{TABLE}/{chart.name}/{curve.label}/{metric}"


def logger_settings(points: list[Record]) -> dict:
    """What the jobs logged with, from their records: the sweep's own config cannot resolve ${hydra:...}."""
    for point in points:
        logger = point.settings.get("logger") or {}
        if logger.get("wandb"):
            return logger["wandb"]
    raise RecordError(
        "none of the finished jobs had logger=wandb, so there is no project or group to upload to"
    )
