"""Learnt stand-ins: fitted so that the sparse model says what the dense one does."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import get_scheduler

from shadow.data.batches import Batch, Example, collate, logits_of
from shadow.executors.masked import MaskedRun
from shadow.fit.quantiles import Quantiles
from shadow.fit.rows import EpochShuffle
from shadow.fit.thresholds import count_scores, quantiles
from shadow.models.sites import SiteKey
from shadow.plans.stand_ins import Learnt
from shadow.signals import Signal


class StandInModule(pl.LightningModule):
    """Descent on how far the sparse model's next token is from the dense one's, whatever the plans are."""

    def __init__(self, run: MaskedRun, stand_in: Learnt, lr: float, moves: bool = False) -> None:
        """run: of the block in which this is fitted, with this stand-in; moves: the thresholds of its policy
        become, after each epoch, those that remove its levels of what was scored in the epoch."""
        super().__init__()
        self.run, self.stand_in, self.lr, self.moves = run, stand_in, lr, moves
        self.seen: dict[SiteKey, Quantiles] = defaultdict(Quantiles)

    @property
    def thresholds(self) -> dict[SiteKey, float]:
        return dict(self.run.planner.policy.thresholds or {})

    def stand(self, thresholds: Mapping[SiteKey, float]) -> None:
        planner = self.run.planner
        planner.policy = replace(planner.policy, thresholds=dict(thresholds))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad(), self.run.planner.looking():
            dense = logits_of(self.run.model, batch)
        sparse = self.sparsely(batch)
        loss = divergence(dense, sparse, batch.real())
        self.log("train/kl", loss, prog_bar=True, batch_size=len(batch.ids), sync_dist=True)
        return loss

    def sparsely(self, batch: Batch) -> Tensor:
        """-> logits [B, T, V] under the plans; what was scored for them is counted where thresholds move."""
        planner, real = self.run.planner, batch.real()
        at = real if planner.decided_at == "token" else None

        @torch.no_grad()
        def count(signal: Signal, scores: Mapping[SiteKey, Tensor]) -> None:
            count_scores(self.seen, scores, planner.policy, planner.sites, at)

        planner.on_scores = count if self.moves else None
        try:
            with planner.calling(real, batch.in_prompt()):
                return logits_of(self.run.model, batch)
        finally:
            planner.on_scores = None

    def on_train_epoch_end(self) -> None:
        if self.moves:
            self.stand(self.thresholds | quantiles(self.seen, self.run.planner.policy))
            self.seen.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["thresholds"] = [[*key, value] for key, value in self.thresholds.items()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stand({(layer, slot): value for layer, slot, value in checkpoint["thresholds"]})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.stand_in.parameters(), self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler("cosine", optimizer, 0, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def divergence(dense: Tensor, sparse: Tensor, real: Tensor) -> Tensor:
    """KL(dense || sparse) in nats, [B, T, V] each, the mean over real positions [B, T]."""
    wanted, found = dense[real].float().log_softmax(-1), sparse[real].float().log_softmax(-1)
    return torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def loader(windows: list[Example], batch_size: int, seed: int) -> DataLoader:
    """Each epoch in an order of its own, which a resumed fit repeats."""
    order = EpochShuffle(len(windows), seed)
    return DataLoader(windows, batch_size=batch_size, sampler=order, collate_fn=collate)  # type: ignore[arg-type]
