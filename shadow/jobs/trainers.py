"""Lightning's trainer of a fit, as the config says, which keeps whole checkpoints."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from shadow.fit.checkpoints import WholeCheckpoints
from shadow.jobs.config import STRATEGIES

log = logging.getLogger(__name__)


class GoesOn(pl.Callback):
    """Says where a fit goes on that was broken off."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch:
            log.info("going on at epoch %d of %d", trainer.current_epoch, trainer.max_epochs)


def trainer_of(cfg: DictConfig, folder: Path, loggers: list, **instead: Any) -> pl.Trainer:
    """folder: of the checkpoint; instead: of settings of cfg.trainer."""
    keeper = ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False)
    extra = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback]
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        strategy=STRATEGIES[cfg.trainer.strategy],
        callbacks=[keeper, GoesOn(), *extra],
        logger=loggers,
        enable_progress_bar=False,  # the bar is a callback of the config
        plugins=[WholeCheckpoints()],
        use_distributed_sampler=False,  # the data share their rows out themselves
        **instead,
    )
    return trainer
