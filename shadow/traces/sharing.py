"""A collection in which the processes share the language model's weights."""

import pytorch_lightning as pl
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from shadow.models.sharded import share


class ShareWeights(pl.Callback):
    """Shares the weights out as soon as the processes know each other; they stay so."""

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList) -> None:
        self.model, self.layers = model, layers

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(self.model, FSDPModule):  # else an earlier collection of this job has done it
            share(self.model, self.layers, trainer.strategy.root_device)
