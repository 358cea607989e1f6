"""Lightning's trainer of a fit, as the config says, which keeps whole checkpoints."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from shadow.fit.checkpoints import WholeCheckpoints
from shadow.jobs.config import STRATEGIES


def trainer_of(cfg: DictConfig, folder: Path, loggers: list, **instead: Any) -> pl.Trainer:
    """folder: of the checkpoint; instead: of settings of cfg.trainer."""
    keeper = ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False)
    extra = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback]
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        strategy=STRATEGIES[cfg.trainer.strategy],
        callbacks=[keeper, *extra],
        logger=loggers,
        plugins=[WholeCheckpoints()],
        use_distributed_sampler=False,  # the data share their rows out themselves
        **instead,
    )
    return trainer
