"""Writes a sweep's report as its evaluate jobs end. Hydra imports it at every start: keep it light."""

import atexit
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from .reports import AGAINST, REPORTS, find_report

if TYPE_CHECKING:
    from .reports.report import Written

log = logging.getLogger(__name__)


class ReportCallback(Callback):
    """Keeps the files of a report in the folder of the sweep, and logs its tables."""

    draw_from = 0.0  # on the monotonic clock
    stale = False  # whether jobs have ended since the last drawing

    def __init__(
        self,
        report: str = "curve",
        against: str = AGAINST,
        patience: float = 0,
        contender_sets: Sequence[str] = (),
        example: str = "contender=...",
    ) -> None:
        """against: the scorer that the others are compared with, example by example.

        patience: how many times the duration of a drawing must pass before the next. contender_sets: the
        settings that a sweep's `contender` takes the place of; example: such a contender.
        """
        if report not in REPORTS:
            raise ValueError(
                f"hydra.callbacks.curve.report must be one of {', '.join(REPORTS)}, got {report}"
            )
        self.report, self.against, self.patience = report, against, patience
        self.contender_sets, self.example = tuple(contender_sets), example

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # Hydra makes a warning of an exception, and hours would go into a grid that nobody asked for
        for override in config.hydra.overrides.task if self.contender_sets else ():
            if override.partition("=")[0] in self.contender_sets:
                raise SystemExit(
                    f"this sweep goes over contender and overrules {override}: choose with {self.example}"
                )
        if draws(config):  # when a job failed, Hydra raises after the last one: on_multirun_end never comes
            atexit.register(self.log_unended, folder_of(config), logs_to_wandb(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        self.stale = time.monotonic() < self.draw_from
        if draws(config) and not self.stale and any_ended(folder_of(config)):
            start = time.monotonic()
            guarded(lambda: self.write(folder_of(config)))
            self.draw_from = time.monotonic() + self.patience * (time.monotonic() - start)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if draws(config):
            atexit.unregister(self.log_unended)
            if any_ended(folder_of(config)):
                guarded(lambda: self.finish(folder_of(config), logs_to_wandb(config)))

    def log_unended(self, folder: Path, with_wandb: bool) -> None:
        guarded(lambda: self.say_unended(folder, with_wandb))

    def write(self, folder: Path) -> "Written":
        from .reports.write import write  # plotly and what it needs take a while

        return write(find_report(self.report), [folder], folder, self.against)

    def summary(self, folder: Path) -> str:
        from .reports.write import summary

        return summary(find_report(self.report), [folder], self.against)

    @property
    def command(self) -> str:
        """Does by hand what this does."""
        return "shadow report" + ("" if self.report == "curve" else f" --{self.report}")

    def finish(self, folder: Path, with_wandb: bool) -> None:
        from .wandb.upload import upload

        written = self.write(folder)
        log.info("%s", self.summary(folder))
        log.info("drawn -> %s", written.page)
        if with_wandb:
            upload(written)

    def say_unended(self, folder: Path, with_wandb: bool) -> None:
        """Draws and uploads nothing: at exit no thread may start."""
        if not any_ended(folder):
            return
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


def any_ended(folder: Path) -> bool:
    """Whether any job has left a record: a sweep may end before its first one."""
    return next(folder.rglob("run.json"), None) is not None


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
    except Exception:  # a report that cannot be drawn must not end the jobs that are still to come
        log.exception("could not redraw the curve")
