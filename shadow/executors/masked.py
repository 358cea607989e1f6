"""The masked executor: a stock model that computes everything, and goes without what a plan drops."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch
from shadow.executors.given import cache_in, read_given
from shadow.executors.planner import Planner
from shadow.executors.replaced import replace_method
from shadow.models.sites import Kind, Site
from shadow.plans.facts import Facts
from shadow.plans.rules import Plan
from shadow.scorers.protocol import Looks, Scorer
from shadow.signals import hook_outputs, hook_signals, hook_sites

WRITTEN = ("row", "block")  # kinds that are dropped of what their readers write


@dataclass(frozen=True)
class Masked:
    """For accuracy: of any scorer, on any known model, in any batch."""

    def refuses(self, facts: Facts) -> str | None:
        return None

    @contextmanager
    def open(self, model: PreTrainedModel, planner: Planner) -> Iterator["MaskedRun"]:
        run = MaskedRun(model, planner)
        with replace_method(model, "forward", run.forward), dropping(model, planner):
            yield run


class MaskedRun:
    """A `Run` by hooks."""

    def __init__(self, model: PreTrainedModel, planner: Planner) -> None:
        self.model, self.planner = model, planner
        self.own_forward = model.forward
        self.signature = inspect.signature(model.forward)
        self.looks = threading.RLock()  # what a scorer has seen of a sample is the scorer's, not the call's

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
        batch, planner = batch.for_model(self.model), self.planner
        with self.looks if isinstance(self.scorer, Looks) else nullcontext():
            planner.look(batch)
            with planner.calling(batch.real(), batch.in_prompt()):
                return self.model(**batch.arguments()).logits

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, of a call that the planner knows."""
        planner = self.planner
        if planner.here.dense or planner.here.call is not None:
            return self.own_forward(*args, **kwargs)
        given = read_given(self.signature, args, kwargs)
        columns = planner.here.columns
        real = given.real(behind=columns is not None and given.start >= columns)
        asked = given.start > 0 and type(planner.policy.tokens) is int
        before = given.before() if asked else None
        with planner.calling(real, planner.prompt_of(real, given.start), given, before) as call:
            output = self.own_forward(*args, **kwargs)
            planner.remember(call, given.read, cache_in(output) if given.cache is None else given.cache)
        return output


def skip(planner: Planner, site: Site, reader: int, x: Tensor, y: Tensor) -> Tensor | None:
    """y: [B, T, E], what a block has written -> with nothing in place of what the plan drops."""
    keep = planner.keep(site.key)
    return None if keep is None else torch.where(keep.to(y.device), y, 0)


@contextmanager
def dropping(model: PreTrainedModel, planner: Planner) -> Iterator[None]:
    """Inside the block each call of the model is planned at the scorer's signals, and goes without what its
    plan drops; `planner.calling` must have been told of the call."""
    sites = planner.sites.values()
    with (
        hook_signals(model, planner.signals, planner.decide),
        hook_sites(model, [site for site in sites if site.kind not in WRITTEN], planner.drop),
        hook_outputs(model, [site for site in sites if site.kind == "block"], partial(skip, planner)),
        hook_outputs(model, planner.corrected_sites, planner.correct),
        hook_outputs(model, [site for site in sites if site.kind == "row"], planner.guess),
    ):
        yield
