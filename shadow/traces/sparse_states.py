"""Collecting what pruning leaves of states: on-policy rows for predictors with late taps."""

import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.calibration import Numbered
from shadow.executors.masked import Fill, sparse
from shadow.models.sites import watch
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.nets import Scorer
from shadow.traces.collector import Arrays, Keeping, features, place, sampled
from shadow.traces.store import FEATURES


class PrunedStates(pl.LightningModule):
    """The states of sampled tokens where a predictor's plans have been at work, decided at each token.

    Late taps read what pruning has changed: a predictor that is to read them in one pass learns from these
    states, with the scores of the dense pass for its target. fill: as `sparse` has it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        keeping: Keeping,
        scorer: Scorer,
        policy: SparsityPolicy,
        fill: Fill | None = None,
    ) -> None:
        super().__init__()
        self.outside = (model, scorer)
        self.keeping, self.policy, self.fill = keeping, policy, fill

    def on_predict_start(self) -> None:
        place(self.outside[0], self.device)

    def predict_step(self, numbered: Numbered, batch_idx: int) -> dict[str, Arrays]:
        (model, scorer), keeping, batch = self.outside, self.keeping, numbered.batch
        row, position = sampled(keeping, numbered)
        found: dict[int, Tensor] = {}
        dropping = sparse(model, scorer, self.policy, fill=self.fill)
        with dropping as run, watch(model, keeping.taps, found.__setitem__):
            run.logits(batch)
        states = torch.stack([found[tap].float().cpu() for tap in keeping.taps], 2)
        return {FEATURES: features(states, batch.to("cpu"), row, position, numbered.first)}
