"""The lm_head in two steps: a copy of low rank says which rows are read, and speaks for the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.errors import require_whole
from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, Point, Site, SiteKey, values_of
from shadow.plans.facts import Facts, Traits
from shadow.plans.low_rank_rest import leading
from shadow.scorers.low_rank import LowRank
from shadow.scorers.recipe import Ingredients, TrainingFree
from shadow.signals import Signal


class TwoStepHead(TrainingFree):
    """Words by their logits of a low-rank copy of the lm_head; those that stay get exact ones.

    What is not read has the copy's logit, so that every word has a likelihood, and the sum is over all words.
    The truncated singular value decomposition as in SVD-softmax (NeurIPS 2017), which rotates the weights and
    reads the first columns in place of a copy: the same product, and r of E columns less to read for words
    that stay.
    """

    kinds: frozenset[Kind] = frozenset({"row"})
    points: frozenset[Point] = frozenset({"site"})

    def __init__(self, rank: int) -> None:
        require_whole("predictor.rank", rank, 1)
        self.rank = rank

    def traits(self, criterion: str, layers: int) -> Traits:
        return super().traits(criterion, layers)._replace(stands_in=True)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        if facts.decided_at == "token":
            return None
        return (
            f"{facts.scorer.name} chooses among words anew for each next one, and needs "
            f"sparsity.decided_at=token, got {facts.decided_at}"
        )

    def build(self, model: PreTrainedModel, have: Ingredients) -> "HeadCopy":
        (site,) = find_sites(model, ["row"])
        weight, bias = values_of(site.module).float(), site.module.bias
        basis = leading(weight, self.rank)
        return HeadCopy(LowRank(basis.T.contiguous(), weight @ basis, None if bias is None else bias.float()))


@dataclass(frozen=True)
class HeadCopy:
    """A scorer of rows that is its own stand-in."""

    copy: LowRank
    kinds: frozenset[Kind] = frozenset({"row"})

    @property
    def stand_in(self) -> "CopiedLogits":
        return CopiedLogits(self.copy)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [Signal(site.layer, "site", "lm_head") for site in sites if site.kind == "row"]

    @torch.no_grad()
    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        assert pool is None, "refused before"
        return {(signal.layer, "vocabulary"): self.copy(x.float())}

    def weights_at(self, site: Site) -> float:
        return self.copy.down.numel() + self.copy.up.numel()


@dataclass(frozen=True)
class CopiedLogits:
    """What a copy says of words whose rows are not read; its numbers have been read for the choice."""

    copy: LowRank

    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        raise AssertionError("rows are no inputs")

    @torch.no_grad()
    def guesses(self, site: Site, x: Tensor) -> Tensor:
        return self.copy(x.float())
