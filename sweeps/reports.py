"""The ways to look at run records, by name. Nothing is imported before it is asked for."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from sweeps.rebuild import Rebuilt


class Report(Protocol):
    """A module that writes one."""

    def rebuild(self, folders: Iterable[Path], out: Path, against: str) -> "Rebuilt": ...

    def summary(self, folders: Iterable[Path], against: str) -> str:
        """All that a person at the console wants to know of a sweep."""
        ...


class Named(NamedTuple):
    module: str
    stem: str  # of its .md and .html
    about: str


AGAINST = "static"  # what every contextual scorer must beat
REPORTS = {
    "curve": Named("sweeps.rebuild", "report", "accuracy and perplexity against achieved sparsity"),
    "criteria": Named("sweeps.criteria_rebuild", "criteria", "compare pruning criteria"),
    "predictors": Named("sweeps.predictors_report", "predictors", "compare predictors by their size"),
    "grid": Named("sweeps.grid_report", "grid", "criterion x predictor x decided-at as heat maps"),
    "task-gap": Named(
        "sweeps.task_gap", "task_gap", "each task's accuracy less that of the scorer --against"
    ),
    "latency": Named("sweeps.latency", "latency", "accuracy against speed of the same plans"),
    "context": Named("sweeps.context", "context", "how much the ranks of units vary over inputs"),
}


def load(name: str) -> Report:
    return cast(Report, import_module(REPORTS[name].module))
