"""From a report to Weights & Biases."""

import logging
from collections.abc import Iterator

from ..curves.chart import Chart
from ..curves.curve import Curve
from ..records.points_csv import COLUMNS, rows_of
from ..records.record import Record, RecordError
from ..reports.report import Written

log = logging.getLogger(__name__)

TABLE = "curve"  # names of what a W&B Report finds again
BYTES = "bytes_skipped"  # share of weight bytes that a decoded token does not read


def upload(written: Written) -> None:
    """One run beside those of the jobs: same project and group, job type `curve`."""
    import wandb  # here: wandb takes a second or two

    settings = logger_settings(written.points)
    run = wandb.init(
        project=settings.get("project"),
        entity=settings.get("entity"),
        group=settings.get("group"),
        tags=settings.get("tags"),
        job_type="curve",
        dir=written.report.parent,
        mode="offline" if settings.get("offline") else None,
    )
    try:
        run.define_metric(f"{TABLE}/*", step_metric=BYTES)
        for row in history(written.charts):
            run.log(row)
        run.log({TABLE: wandb.Table(columns=list(COLUMNS), data=rows_of(written.points))})
        run.log({figure.stem: wandb.Image(str(figure)) for figure in written.figures.values()})
        run.log({written.page.stem: wandb.Html(written.page.read_text(encoding="utf-8"))})
    finally:
        run.finish()
    log.info("logged the curve to wandb run %s of group %s", run.id, settings.get("group"))


def history(charts: list[Chart]) -> Iterator[dict[str, float]]:
    """A row for each mark, the dense one first of each curve, so that W&B can draw lines itself."""
    for chart in charts:
        for curve in chart.curves:
            for mark in [*([chart.dense] if chart.dense else []), *curve.marks]:
                figures = {series(chart, curve, name): one.value for name, one in mark.metrics.items()}
                yield {BYTES: mark.bytes.skipped, **figures}


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
