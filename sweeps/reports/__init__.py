"""The reports on run records, by name. Nothing is imported before it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .report import Report

AGAINST = "static"  # what every contextual scorer must beat


class Entry(NamedTuple):
    """module: has a REPORT. stem: of its .md and .html."""

    module: str
    stem: str
    about: str


REPORTS = {
    "curve": Entry("curve", "report", "accuracy and perplexity against the weight bytes that are not read"),
    "methods": Entry("methods", "methods", "nats over dense at equal bytes, with the least that any loses"),
    "criteria": Entry("criteria.report", "criteria", "compare pruning criteria"),
    "predictors": Entry("predictors.report", "predictors", "compare predictors by their size"),
    "grid": Entry("grid.report", "grid", "criterion x predictor x decided-at as heat maps"),
    "task-gap": Entry("task_gap", "task_gap", "each task's accuracy less that of the scorer --against"),
    "latency": Entry("latency", "latency", "accuracy against speed of the same plans"),
    "context": Entry("rank_variance", "context", "how much the ranks of units vary over inputs"),
}


def find_report(name: str) -> "Report":
    return import_module(f".{REPORTS[name].module}", __name__).REPORT
