"""Redraws what follows a sweep as its evaluate jobs end. Hydra imports it at every start: keep it light."""

import atexit
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from sweeps.reports import AGAINST, REPORTS, load

if TYPE_CHECKING:
    from sweeps.rebuild import Rebuilt

log = logging.getLogger(__name__)


class CurveCallback(Callback):
    """Keeps the files of a report in the folder of the sweep, and logs the table."""

    report = "curve"  # of sweeps.reports
    overruled: str | None = None  # a pattern of overrides that the sweep's `contender` takes the place of
    contender = ""  # an example of it
    patience = 0  # how many times the duration of a drawing must pass before the next
    draw_from = 0.0  # on the monotonic clock
    stale = False  # whether jobs have ended since the last drawing

    def __init__(self, against: str = AGAINST) -> None:
        """against: the scorer that the others are compared with, example by example."""
        self.against = against

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # Hydra makes a warning of an exception, and hours would go into a grid that nobody asked for
        for override in config.hydra.overrides.task if self.overruled and "contender" in config else ():
            if re.match(str(self.overruled), override):
                raise SystemExit(
                    f"this sweep goes over contender and overrules {override}: choose with {self.contender}"
                )
        if draws(
            config
        ):  # when a job failed, Hydra raises after the last one and on_multirun_end never comes
            atexit.register(self.log_unended, folder_of(config), logs_to_wandb(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        self.stale = time.monotonic() < self.draw_from
        if draws(config) and not self.stale:
            start = time.monotonic()
            guarded(lambda: self.rebuild(folder_of(config)))
            self.draw_from = time.monotonic() + self.patience * (time.monotonic() - start)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if draws(config):
            atexit.unregister(self.log_unended)
            guarded(lambda: self.finish(folder_of(config), logs_to_wandb(config)))

    def log_unended(self, folder: Path, with_wandb: bool) -> None:
        guarded(lambda: self.say_unended(folder, with_wandb))

    def rebuild(self, folder: Path) -> "Rebuilt":
        return load(self.report).rebuild([folder], folder, self.against)

    def summary(self, folder: Path) -> str:
        return load(self.report).summary([folder], self.against)

    @property
    def command(self) -> str:
        """Does by hand what this does."""
        return "python -m sweeps" + ("" if self.report == "curve" else f" --{self.report}")

    def finish(self, folder: Path, with_wandb: bool) -> None:
        from sweeps.upload import upload

        rebuilt = self.rebuild(folder)
        log.info("%s", self.summary(folder))
        log.info(
            "drawn -> %s", ", ".join(map(str, [*rebuilt.figures.values(), rebuilt.report, rebuilt.page]))
        )
        if with_wandb:
            upload(rebuilt)

    def say_unended(self, folder: Path, with_wandb: bool) -> None:
        """Draws and uploads nothing: at exit no thread may start."""
        if not folder.is_dir():
            return  # the sweep did not get as far as its first job
        log.info("%s", self.summary(folder))
        report = folder / f"{REPORTS[self.report].stem}.md"
        lacks = " (without the last jobs)" if self.stale else ""
        log.info("drawn -> %s%s; anew: %s %s", report, lacks, self.command, folder)
        if with_wandb:
            log.warning(
                "this is not in W&B, as the sweep broke off; put it there: %s %s --wandb",
                self.command,
                folder,
            )


class CriteriaCallback(CurveCallback):
    """For sweep=criteria."""

    report = "criteria"
    overruled = r"(criterion|predictor)="
    contender = "contender='[static,fisher],[oracle,fisher]'"
    patience = 20  # hundreds of short jobs: drawing after each would take as long as they do


class PredictorsCallback(CurveCallback):
    """For sweep=predictors."""

    report = "predictors"
    overruled = r"predictor="
    contender = "contender='[unified,[1],72,token,false],[oracle,[1],1,sequence,false]'"


class GridCallback(CurveCallback):
    """For sweep=grid and those that show how predictors rank."""

    report = "grid"
    patience = 20  # half of the jobs find the dense model again, which takes a moment


class TaskGapCallback(CurveCallback):
    """For sweep=task_gap."""

    report = "task-gap"


class ContextCallback(CurveCallback):
    """For sweep=context."""

    report = "context"


class LatencyCallback(CurveCallback):
    """For sweep=accuracy_latency."""

    report = "latency"


def draws(config: DictConfig) -> bool:
    return config.hydra.mode == RunMode.MULTIRUN and config.get("task_name") == "evaluate"


def folder_of(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.cwd, config.hydra.sweep.dir)


def logs_to_wandb(config: DictConfig) -> bool:
    return bool((config.get("logger") or {}).get("wandb"))


def guarded(work: Callable[[], object]) -> None:
    """Hydra makes a one-line warning of whatever a callback raises; the log gets the whole of it."""
    try:
        work()
    except Exception:  # a curve that cannot be drawn must not end the jobs that are still to come
        log.exception("could not redraw the curve")
