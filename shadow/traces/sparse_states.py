"""Collecting what pruning leaves of states: on-policy rows for predictors with late taps."""

import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.calibration import Numbered
from shadow.front import sparse
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer
from shadow.signals import Signal, hook_signals
from shadow.traces.collector import Arrays, Keeping, features, place, sampled
from shadow.traces.shards import FEATURES


class PrunedStates(pl.LightningModule):
    """The states of sampled tokens where a predictor's plans have been at work, decided at each token.

    Late taps read what pruning has changed: a predictor that is to read them in one pass learns from these
    states, with the scores of the dense pass for its target. stand_in: as `sparse` has it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        keeping: Keeping,
        scorer: Scorer,
        policy: SparsityPolicy,
        stand_in: StandIn,
    ) -> None:
        super().__init__()
        self.outside = (model, scorer)
        self.keeping, self.policy, self.stand_in = keeping, policy, stand_in

    def on_predict_start(self) -> None:
        place(self.outside[0], self.device)

    def predict_step(self, numbered: Numbered, batch_idx: int) -> dict[str, Arrays]:
        (model, scorer), keeping, batch = self.outside, self.keeping, numbered.batch
        row, position = sampled(keeping, numbered)
        found: dict[Signal, Tensor] = {}
        asked = [Signal(tap, "layer_input") for tap in keeping.taps]
        dropping = sparse(model, scorer, self.policy, stand_in=self.stand_in)
        with dropping as run, hook_signals(model, asked, found.__setitem__):
            run.logits(batch)
        states = torch.stack([found[signal].float().cpu() for signal in asked], 2)
        return {FEATURES: features(states, batch.to("cpu"), row, position, numbered.first)}
