"""Bars of what Lightning runs: collecting by shards, fits by epochs."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from shadow.data.calibration import Numbered
from shadow.terminal.bars import stage


class ShardBar(pl.Callback):
    """Of `Trainer.predict`: windows move it on, shards are counted, those of all processes."""

    def __init__(self, shard_windows: int, ends: Mapping[int, int], there: int, total: int) -> None:
        """ends: as `ShardWriter` has them; there: shards that are not collected anew."""
        self.shard_windows, self.ends, self.there, self.total = shard_windows, ends, there, total
        self.shown = ExitStack()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.advance = self.shown.enter_context(stage("collecting", self.total, "shards", self.there))

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Numbered,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        shard = batch.first // self.shard_windows
        windows = self.ends[shard] - shard * self.shard_windows
        self.advance(len(batch.batch.ids) / windows * trainer.world_size)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.shown.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.shown.close()


class FitBar(pl.Callback):
    """Of `Trainer.fit`, epochs; of `Trainer.validate`, batches."""

    def __init__(self) -> None:
        self.shown = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.max_epochs or 0
        self.advance = self.shown.enter_context(stage("fitting", epochs, "epochs", trainer.current_epoch))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.advance(1 / trainer.num_training_batches)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.shown.close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            batches = int(sum(trainer.num_val_batches))
            self.advance = self.shown.enter_context(stage("validating", batches, "batches"))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.advance(1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.shown.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.shown.close()
