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
from shadow.scorers.calibrated import watch
from shadow.scorers.low_rank import LowRank
from shadow.scorers.recipe import Ingredients, Needs, TrainingFree
from shadow.signals import Signal


class TwoStepHead(TrainingFree):
    """Words by their logits of a low-rank copy of the lm_head; those that stay get exact ones.

    What is not read has the copy's logit, so that every word has a likelihood, and the sum is over all words.
    As SVD-softmax (NeurIPS 2017), but the copy is the one of its rank that is nearest to the logits of the
    calibration, around their mean, where theirs is nearest to the weights. They rotate the weights and read
    the first columns in place of a copy, and so r of E columns less for words that stay.
    """

    kinds: frozenset[Kind] = frozenset({"row"})
    points: frozenset[Point] = frozenset({"site"})

    def __init__(self, rank: int) -> None:
        require_whole("predictor.rank", rank, 1)
        self.rank = rank

    def traits(self, criterion: str, layers: int) -> Traits:
        return super().traits(criterion, layers)._replace(stands_in=CopiedLogits.__name__)

    def needs(self, criterion: str) -> Needs:
        return Needs(sample=True)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        if facts.decided_at == "token":
            return None
        return (
            f"{facts.scorer.name} chooses among words anew for each next one, and needs "
            f"sparsity.decided_at=token, got {facts.decided_at}"
        )

    def build(self, model: PreTrainedModel, have: Ingredients) -> "HeadCopy":
        (site,) = find_sites(model, ["row"])
        read = Signal(site.layer, "site", "lm_head")
        count, total, square = 0, torch.zeros(0), torch.zeros(0)

        def add(signal: Signal, x: Tensor) -> None:
            nonlocal count, total, square
            x = x.double()
            first = count == 0
            total, square = (x.sum(0), x.T @ x) if first else (total + x.sum(0), square + x.T @ x)
            count += len(x)

        watch(model, [read], have.sample(), add)
        mean = total / count
        spread = square / count - torch.outer(mean, mean)
        return HeadCopy(copy_of(values_of(site.module), site.module.bias, mean, spread, self.rank))


def copy_of(weight: Tensor, bias: Tensor | None, mean: Tensor, spread: Tensor, rank: int) -> LowRank:
    """weight: [V, E]; mean: [E] and spread: [E, E], float64, of what it reads -> the copy of this rank that
    is nearest to its outputs."""
    values, axes = torch.linalg.eigh(spread)
    values = values.clamp(min=1e-9 * float(values[-1]))  # directions that calibration does not show
    root, back = (axes * values.sqrt()) @ axes.T, (axes / values.sqrt()) @ axes.T
    weight = weight.float()
    gram = (weight.T @ weight).double()
    basis = torch.linalg.eigh(root @ gram @ root).eigenvectors.flip(-1)[:, :rank]
    down, up = (basis.T @ back).float().contiguous(), weight @ (root @ basis).float()
    offset = weight @ mean.float() - up @ (down @ mean.float())
    return LowRank(down, up, offset if bias is None else offset + bias.float())


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
        """Of the factors, and an offset of each word."""
        return self.copy.down.numel() + self.copy.up.numel() + site.units


@dataclass(frozen=True)
class CopiedLogits:
    """What a copy says of words whose rows are not read; its numbers have been read for the choice."""

    copy: LowRank

    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        raise AssertionError("rows are no inputs")

    @torch.no_grad()
    def guesses(self, site: Site, x: Tensor) -> Tensor:
        return self.copy(x.float())
