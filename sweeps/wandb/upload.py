"""From a report to Weights & Biases."""

import logging
from collections.abc import Iterator

from ..curves.chart import Chart
from ..differences.nats import NATS
from ..records.points_csv import COLUMNS, rows_of
from ..records.record import Record, RecordError
from ..reports.methods import LEAST, frontier
from ..reports.report import Written
from . import leaderboard

log = logging.getLogger(__name__)

CURVE = "curve"  # what a W&B Report finds again: figures of the curves begin with it,
POINTS = "points"  # the table of points, and the page; a drawing has its file's name, which is neither
PAGE = "page"
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
        run.define_metric(f"{CURVE}/*", step_metric=BYTES)
        for row in history(written.charts):
            run.log(row)
        run.log({POINTS: wandb.Table(columns=list(COLUMNS), data=rows_of(written.points))})
        board = leaderboard.rows_of(written.charts)
        if board:
            run.log({leaderboard.LEADERBOARD: wandb.Table(columns=list(leaderboard.COLUMNS), data=board)})
        run.log({figure.stem: wandb.Image(str(figure)) for figure in written.figures.values()})
        run.log({PAGE: wandb.Html(written.page.read_text(encoding="utf-8"))})
    finally:
        run.finish()
    log.info("logged the curve to wandb run %s of group %s", run.id, settings.get("group"))


def history(charts: list[Chart]) -> Iterator[dict[str, float]]:
    """A row for each mark, the dense one first of each curve, so that W&B can draw lines itself; then what
    the best of all methods lose."""
    for chart in charts:
        for curve in chart.curves:
            for mark in [*([chart.dense] if chart.dense else []), *curve.marks]:
                figures = {series(chart, curve.label, n): one.value for n, one in mark.metrics.items()}
                if mark.over_dense is not None:
                    figures[series(chart, curve.label, NATS)] = mark.over_dense.value
                elif mark is chart.dense:
                    figures[series(chart, curve.label, NATS)] = 0.0
                yield {BYTES: mark.bytes.skipped, **figures}
        for spot in reversed(frontier(chart)):
            yield {BYTES: spot.x, series(chart, LEAST, NATS): spot.y}


def series(chart: Chart, label: str, metric: str) -> str:
    """What W&B calls a metric of a curve."""
    return f"{CURVE}/{chart.name}/{label}/{metric}"


def logger_settings(points: list[Record]) -> dict:
    """What the jobs logged with, from their records: the sweep's own config cannot resolve ${hydra:...}."""
    for point in points:
        logger = point.settings.get("logger") or {}
        if logger.get("wandb"):
            return logger["wandb"]
    raise RecordError(
        "none of the finished jobs had logger=wandb, so there is no project or group to upload to"
    )
