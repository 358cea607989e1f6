"""Redraws the curve of a sweep as its evaluate jobs end. Hydra imports it at every start: keep it light."""

import atexit
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class CurveCallback(Callback):
    """Keeps curve.csv, curve.png and report.md in the folder of the sweep, and logs the table at its end."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if draws(
            config
        ):  # when a job failed, Hydra raises after the last one and on_multirun_end never comes
            atexit.register(self.log_unended, folder_of(config), logs_to_wandb(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if draws(config):
            guarded(lambda: redraw(folder_of(config)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if draws(config):
            atexit.unregister(self.log_unended)
            guarded(lambda: finish(folder_of(config), logs_to_wandb(config)))

    def log_unended(self, folder: Path, with_wandb: bool) -> None:
        guarded(lambda: say_unended(folder, with_wandb))


def draws(config: DictConfig) -> bool:
    return config.hydra.mode == RunMode.MULTIRUN and config.get("task_name") == "evaluate"


def folder_of(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.cwd, config.hydra.sweep.dir)


def logs_to_wandb(config: DictConfig) -> bool:
    return bool((config.get("logger") or {}).get("wandb"))


def redraw(folder: Path) -> None:
    from sweeps.rebuild import rebuild

    rebuild([folder], folder)


def finish(folder: Path, with_wandb: bool) -> None:
    from sweeps.rebuild import rebuild
    from sweeps.table import summary
    from sweeps.upload import upload

    rebuilt = rebuild([folder], folder)
    log.info("%s", summary(rebuilt.records, rebuilt.charts))
    log.info("curves -> %s", ", ".join(map(str, [*rebuilt.figures.values(), rebuilt.report])))
    if with_wandb:
        upload(rebuilt)


def say_unended(folder: Path, with_wandb: bool) -> None:
    """Draws and uploads nothing: at exit no thread may start, and the last job's end has drawn."""
    from sweeps.rebuild import find_points
    from sweeps.table import summary

    if not folder.is_dir():
        return  # the sweep did not get as far as its first job
    records, charts = find_points([folder])
    log.info("%s", summary(records, charts))
    log.info("curves -> %s", folder / "report.md")
    if with_wandb:
        log.warning(
            "the curve is not in W&B, as the sweep broke off; put it there: python -m sweeps %s --wandb",
            folder,
        )


def guarded(work: Callable[[], None]) -> None:
    """Hydra makes a one-line warning of whatever a callback raises; the log gets the whole of it."""
    try:
        work()
    except Exception:  # a curve that cannot be drawn must not end the jobs that are still to come
        log.exception("could not redraw the curve")
