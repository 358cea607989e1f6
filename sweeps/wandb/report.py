"""From a report to a W&B Report over the runs that its jobs and its upload have logged."""

import logging
import re
from typing import TYPE_CHECKING

from ..curves.chart import Chart
from ..differences.nats import NATS
from ..records.kinds import KINDS
from ..records.metrics import curve_metrics
from ..records.record import RecordError
from ..reports.methods import LEAST, frontier
from ..reports.report import Written
from .leaderboard import LEADERBOARD
from .upload import BYTES, POINTS, logger_settings, series

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Layout, Report, Runset
    from wandb_workspaces.reports.v2.interface import BlockTypes, PanelTypes

log = logging.getLogger(__name__)

TITLE_LENGTH = 128  # W&B takes no longer one
IMAGE = re.compile(r"^!\[.*\]\(.*\)\n?", re.MULTILINE)  # of report.md: W&B has no file beside it
# what a person looks for in a table of runs, as W&B addresses a nested setting
COLUMNS = (
    *("run:name", "run:state"),
    *(f"config:{name}" for name in ("predictor.value.name", "criterion.value.name", "sparsity.value.level")),
    *("config:seed.value", "summary:bytes/skipped", *(f"summary:achieved/{kind}" for kind in KINDS)),
)


def save(written: Written) -> None:
    """Needs an account, and the runs of the jobs and of `--wandb` in it."""
    import wandb

    try:
        if not wandb.login(prompt=False):
            raise RecordError("a W&B Report needs an account: say `wandb login`, or set WANDB_API_KEY")
        report = build(written).save()
    except wandb.Error as error:
        raise RecordError(f"W&B took no report: {error}") from error
    log.info("W&B Report: %s", report.url)


def build(written: Written) -> "Report":
    """In the project and entity that the jobs logged to; without an entity W&B is asked for the account's."""
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise RecordError(
            "a W&B Report needs wandb-workspaces: pip install -c constraints-cpu.txt -e .[wandb-reports]"
        ) from error
    settings = logger_settings(written.points)
    group, entity = settings.get("group"), settings.get("entity")
    title = f"{written.report.stem}: {', '.join(chart.name for chart in written.charts)}"
    blocks: list[BlockTypes] = []
    for chart in written.charts:
        curves = wr.PanelGrid(runsets=[runs("curves", group, "curve")], panels=line_plots(written, chart))
        blocks += [wr.H2(chart.name), curves]
    jobs = runs("jobs", group, "evaluate")
    jobs.pinned_columns = [*COLUMNS, *(f"summary:{metric}" for metric in first_metrics(written))]
    blocks += [wr.H2("Jobs"), wr.PanelGrid(runsets=[jobs], panels=scatter_plots(written))]
    blocks.append(wr.MarkdownBlock(IMAGE.sub("", written.report.read_text(encoding="utf-8"))))
    return wr.Report(
        project=settings["project"],
        **({"entity": entity} if entity else {}),
        title=title[:TITLE_LENGTH],
        description=f"Made by `shadow report --wandb-report` of the runs of group {group}.",
        blocks=blocks,
        width="fluid",
    )


def runs(name: str, group: str | None, job_type: str) -> "Runset":
    """Of the report's own project, those of the sweep's group that are of this type."""
    import wandb_workspaces.reports.v2 as wr

    wanted = {"JobType": job_type} | ({"Group": group} if group else {})
    # as text: of the library's own expressions, one whose value has a quote in it cannot be read
    return wr.Runset(
        name=name, filters=" and ".join(f"Metric('{key}') == {v!r}" for key, v in wanted.items())
    )


def line_plots(written: Written, chart: Chart) -> list["PanelTypes"]:
    """The first accuracy, the perplexity, nats over dense with the least that any loses, the leaderboard, the
    table of points, and the figures as they were drawn; two in a row."""
    import wandb_workspaces.reports.v2 as wr

    labels = [curve.label for curve in chart.curves]
    wanted = [(metric, labels) for metric in first_metrics(written._replace(charts=[chart]))]
    ranked = bool(frontier(chart))
    wanted += [(NATS, [*labels, LEAST])] if ranked else []
    panels: list[PanelTypes] = [
        wr.LinePlot(
            title=f"{metric} against weight bytes not read",
            x=BYTES,
            y=[series(chart, label, metric) for label in drawn],
            title_x="weight bytes not read",
            title_y=metric,
            log_y=metric == chart.perplexity,
            smoothing_type="none",
            layout=at(place),
        )
        for place, (metric, drawn) in enumerate(wanted)
    ]
    tables = [*([LEADERBOARD] if ranked else []), POINTS]
    for name in tables:
        panels.append(wr.WeavePanelSummaryTable(table_name=name, layout=at(len(panels))))
    if chart.name in written.figures:
        stem = written.figures[chart.name].stem
        panels.append(wr.MediaBrowser(media_keys=[stem], layout=at(len(panels))))
    return panels


def at(place: int) -> "Layout":
    """Of a grid of two in a row."""
    import wandb_workspaces.reports.v2 as wr

    return wr.Layout(x=12 * (place % 2), y=10 * (place // 2), w=12, h=10)


def scatter_plots(written: Written) -> list["PanelTypes"]:
    """A point for each job."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.ScatterPlot(
            title=f"{metric} of each job",
            x=wr.SummaryMetric("bytes/skipped"),
            y=wr.SummaryMetric(metric),
            layout=wr.Layout(x=12 * place, y=0, w=12, h=10),
        )
        for place, metric in enumerate(first_metrics(written))
    ]


def first_metrics(written: Written) -> list[str]:
    """What a curve is drawn of: the first accuracy, and the perplexity."""
    perplexity, accuracies = curve_metrics([record for chart in written.charts for record in chart.records])
    return [*accuracies[:1], *([perplexity] if perplexity else [])]
