"""The masked executor: a stock model that computes everything, and goes without what a plan drops."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch, logits_of
from shadow.executors.planner import Planner
from shadow.executors.run import real_positions
from shadow.models.cache_name import cache_of
from shadow.models.sites import Kind
from shadow.plans.facts import Facts
from shadow.plans.rules import Plan
from shadow.scorers.protocol import Scorer
from shadow.signals import hook_calls, hook_signals, hook_sites


@dataclass(frozen=True)
class Masked:
    """For accuracy: of any scorer, on any known model, in any batch."""

    def refuses(self, facts: Facts) -> str | None:
        return None

    @contextmanager
    def open(self, model: PreTrainedModel, planner: Planner) -> Iterator["MaskedRun"]:
        run = MaskedRun(model, planner)
        with hook_calls(model, run.called), dropping(model, planner):
            yield run


class MaskedRun:
    """A `Run` by hooks."""

    def __init__(self, model: PreTrainedModel, planner: Planner) -> None:
        self.model, self.planner = model, planner
        self._batch: Batch | None = None
        self._signature = inspect.signature(model.forward)

    @property
    def scorer(self) -> Scorer:
        return self.planner.scorer

    @property
    def plan(self) -> Plan:
        return self.planner.plan

    def achieved(self, kind: Kind) -> float:
        return self.planner.achieved(kind)

    def bytes(self) -> dict[str, float | dict[str, float]]:
        return self.planner.bytes()

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """-> [B, T, V]; the batch says where its rows and their prompts end."""
        batch = batch.to(self.model.device)
        self.planner.look(batch)
        self._batch = batch
        try:
            return logits_of(self.model, batch)
        finally:
            self._batch = None

    def called(self, args: tuple, kwargs: dict) -> None:
        """Tell the planner of a call of the model."""
        if self._batch is not None:
            self.planner.begin(self._batch.real(), self._batch.in_prompt())
            return
        given = self._signature.bind(*args, **kwargs).arguments | kwargs
        shown = given.get("input_ids")
        if shown is None:  # [B, T, E] instead of [B, T]
            shown = given["inputs_embeds"][..., 0]
        cache, mask = cache_of(given), given.get("attention_mask")
        real = real_positions(shown, mask)
        before = None
        if cache is not None and (cached := cache.get_seq_length()) > 0:
            seen = torch.full(shown.shape[:1], cached, device=shown.device)
            before = seen if mask is None else mask[:, : mask.shape[1] - shown.shape[1]].sum(1)
        self.planner.begin(real, real, before)


@contextmanager
def dropping(model: PreTrainedModel, planner: Planner) -> Iterator[None]:
    """Inside the block each call of the model is planned at the scorer's signals, and goes without what its
    plan drops; `planner.begin` must have been told of the call."""
    with (
        hook_signals(model, planner.signals, planner.decide),
        hook_sites(model, list(planner.sites.values()), planner.drop),
    ):
        yield
