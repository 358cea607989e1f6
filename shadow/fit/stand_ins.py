"""Learnt stand-ins: fitted so that the sparse model says what the dense one does."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import get_scheduler

from shadow.data.batches import Batch, Example, collate, logits_of
from shadow.executors.masked import MaskedRun
from shadow.fit.rows import EpochShuffle
from shadow.plans.stand_ins import Learnt


class StandInModule(pl.LightningModule):
    """Descent on how far the sparse model's next token is from the dense one's, whatever the plans are."""

    def __init__(self, run: MaskedRun, stand_in: Learnt, lr: float) -> None:
        """run: of the block in which this is fitted, with this stand-in."""
        super().__init__()
        self.run, self.stand_in, self.lr = run, stand_in, lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad(), self.run.planner.looking():
            dense = logits_of(self.run.model, batch)
        with self.run.planner.calling(batch.real(), batch.in_prompt()):
            sparse = logits_of(self.run.model, batch)
        loss = divergence(dense, sparse, batch.real())
        self.log("train/kl", loss, prog_bar=True, batch_size=len(batch.ids), sync_dist=True)
        return loss

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
