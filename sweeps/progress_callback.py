"""Says how many jobs a sweep has, and which have ended. Hydra imports it at every start: keep it light."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from . import best_trial
from .progress import Progress, begin, read
from .records.metrics import is_accuracy, is_perplexity
from .records.variants import split_override

log = logging.getLogger(__name__)
SHOWN = 2  # metrics in a job's line


class ProgressCallback(Callback):
    """One line at the beginning, and one a job. What it knows goes along to the jobs' own processes."""

    progress: Progress | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.progress = begin(config)
        log.info("%s -> %s", self.progress.at_the_beginning(), config.hydra.sweep.dir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or self.progress is None:
            return
        records = [record for file in folder_of(config).glob("*/run.json") if (record := read(file))]
        own = read(Path(config.hydra.runtime.output_dir) / "run.json") or {}
        left = self.progress.left(len(records), sum(not one.get("reused_from") for one in records))
        chosen = [
            word for word in config.hydra.overrides.task if split_override(word)[0] in self.progress.varied
        ]
        words = ": ".join(
            [f"{len(records)} of {self.progress.jobs} jobs", *([" ".join(chosen)] if chosen else [])]
        )
        if own.get("status") == "done":
            log.info("%s", "; ".join(filter(None, [f"{words}: {figures(own['metrics'])}", left])))
        else:
            log.error("%s: %s", words, " ".join(str(own.get("error", "it left no record")).split()))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = folder_of(config)
        if config.get("task_name") == "train" and (folder / best_trial.RESULTS).is_file():
            found = (read(file) for file in folder.glob("*/run.json"))
            for line in best_trial.in_words(
                folder, [one for one in found if one and one["status"] == "done"]
            ):
                log.info("%s", line)


def folder_of(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.cwd, config.hydra.sweep.dir)


def figures(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Its perplexity and an accuracy, or how well a fit ranks, where it has them; else others."""
    if best_trial.ASKED in metrics:
        return f"{best_trial.ASKED} {metrics[best_trial.ASKED]['value']:.3f}"
    shown = sorted(metrics, key=lambda name: (not is_perplexity(name), not is_accuracy(name), len(name)))
    shown = [name for n, name in enumerate(shown) if n == 0 or not is_perplexity(name)][:SHOWN]
    return ", ".join(f"{name} {metrics[name]['value']:.4g}" for name in shown) or "nothing was measured"
