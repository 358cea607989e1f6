"""The routers of a job: found, or fitted on the calibration's first windows."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from torch import nn

from shadow.artifacts import learnt_numbers
from shadow.fit.checkpoints import resumable
from shadow.fit.stand_ins import loader
from shadow.jobs.calibration import calibration_data
from shadow.jobs.keys import router_folder, router_settings
from shadow.jobs.loading import require_weights
from shadow.jobs.run import versions
from shadow.jobs.stores import taking_turns
from shadow.jobs.trainers import trainer_of
from shadow.models.digest import digest
from shadow.models.load import LM
from shadow.scorers.recipe import Schedule

log = logging.getLogger(__name__)


def fitted(
    cfg: DictConfig,
    lm: LM,
    module: pl.LightningModule,
    net: nn.Module,
    schedule: Schedule,
    loggers: Sequence[Any],
) -> None:
    """net becomes what module fits; its numbers lie in a folder of these settings."""
    folder = router_folder(cfg)
    if not (folder / learnt_numbers.CONFIG).is_file():
        with taking_turns(folder):
            if not (folder / learnt_numbers.CONFIG).is_file():  # else another job was faster
                fit(cfg, lm, module, net, schedule, folder, loggers)
    (folder / "last.ckpt").unlink(missing_ok=True)  # it was for going on
    require_weights(folder, learnt_numbers.read_config(folder)["weights"], lm)
    learnt_numbers.read(folder, learnt_numbers.ROUTER, net)


def fit(
    cfg: DictConfig,
    lm: LM,
    module: pl.LightningModule,
    net: nn.Module,
    schedule: Schedule,
    folder: Path,
    loggers: Sequence[Any],
) -> None:
    start = time.monotonic()
    windows = calibration_data(cfg).examples(lm)[: schedule.windows]
    trainer = trainer_of(cfg, folder, list(loggers), max_epochs=schedule.epochs, gradient_clip_val=None)
    log.info("fitting routers on %d windows, %d epochs", len(windows), schedule.epochs)
    trainer.fit(module, loader(windows, schedule.batch_size, cfg.seed), ckpt_path=resumable(folder))
    if trainer.interrupted:
        raise KeyboardInterrupt
    numbers = sum(values.numel() for values in net.parameters())
    config = {
        "settings": router_settings(cfg),
        "weights": digest(lm.model),
        "windows": len(windows),
        "numbers": numbers,
        "kl": float(trainer.callback_metrics["train/kl"]),
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
    }
    learnt_numbers.write(folder, learnt_numbers.ROUTER, net, config)
    log.info("routers: %d numbers, %.0f s -> %s", numbers, config["seconds"], folder)
