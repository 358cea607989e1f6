"""Static pruning of heads and neurons as scorers: what is left out once for all, with no weight changed.

Scores are standardised in each layer, so that sparsity=global ranks over layers, of heads and of neurons
each for itself; with sparsity=layer every layer loses the same. Keys and values count as read.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.models.kinds import find_sites
from shadow.models.sharded import whole
from shadow.models.sites import KINDS, Kind, Point, Site, SiteKey, column_norms_of, values_of
from shadow.plans.facts import Facts, Traits
from shadow.plans.stand_ins import Mean
from shadow.scorers.calibrated import Moments, moments_of, sent_elsewhere
from shadow.scorers.fixed import Compensated, Fixed
from shadow.scorers.recipe import Ingredients, Needs, TrainingFree
from shadow.scorers.scaled import seen_at


class Once(TrainingFree):
    """Of what all of them are."""

    kinds: frozenset[Kind] = frozenset(KINDS)
    points: frozenset[Point] = frozenset()

    def needs(self, criterion: str) -> Needs:
        return Needs(sample=True)


class Magnitude(TrainingFree):
    """The norms of a neuron's rows of gate and up and of its column of down, multiplied; of a head the norm
    of its columns of o."""

    kinds: frozenset[Kind] = frozenset(KINDS)
    points: frozenset[Point] = frozenset()

    def build(self, model: PreTrainedModel, have: Ingredients) -> Fixed:
        return Fixed({site.key: standardised(weight_norms(site)) for site in find_sites(model)})


class WandaSp(Once):
    """Wanda-sp (of the code of arXiv 2312.11983): mean |W| of a column times the norm of what it reads.

    Summed over the columns of a head. The authors rank over all layers, sparsity=global; heads and neurons
    in one ranking there, and each for itself here.
    """

    def build(self, model: PreTrainedModel, have: Ingredients) -> Fixed:
        found = {}
        for site, moments in seen_by_sites(model, have):
            columns = site.columns().abs().float().mean(0)  # [U, D]
            found[site.key] = standardised((columns * shaped(moments.norm, site)).sum(1))
        return Fixed(found)


class Fluctuation(Once):
    """FLAP (arXiv 2312.11983): the variance of an input times its column's squared norm; its mean stays.

    Summed over the columns of a head. What goes says its calibration mean, a constant that the authors add to
    a bias. They rank heads and neurons of all layers in one, weighted by their sizes; here each for itself.
    """

    def traits(self, criterion: str, layers: int) -> Traits:
        return super().traits(criterion, layers)._replace(stands_in="mean")

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return sent_elsewhere(facts)

    def build(self, model: PreTrainedModel, have: Ingredients) -> Compensated:
        scores: dict[SiteKey, Tensor] = {}
        means: dict[SiteKey, Tensor] = {}
        for site, moments in seen_by_sites(model, have):
            squares = site.columns().float().square().sum(0)  # [U, D]
            scores[site.key] = standardised((squares * shaped(moments.variance, site)).sum(1))
            means[site.key] = shaped(moments.mean, site)
        return Compensated(scores, Mean(means))


class ActivationNorm(Once):
    """CFSP (arXiv 2409.13199): the norm of a neuron's activation, with sparsity.budgets=angular for layers.

    The score of its code has terms of the weights too, each over the sum of its own column, so that their
    mean is the same for all neurons: it is this norm.
    """

    kinds: frozenset[Kind] = frozenset({"neuron"})

    def build(self, model: PreTrainedModel, have: Ingredients) -> Fixed:
        found = seen_by_sites(model, have, ["neuron"])
        return Fixed({site.key: standardised(moments.norm) for site, moments in found})


def seen_by_sites(
    model: PreTrainedModel, have: Ingredients, kinds: list[Kind] | None = None
) -> list[tuple[Site, Moments]]:
    sites = find_sites(model, kinds or KINDS)
    moments = moments_of(model, [seen_at(site, "site") for site in sites], have.sample())
    return [(site, moments[seen_at(site, "site")]) for site in sites]


def weight_norms(site: Site) -> Tensor:
    """-> [U]: the product of the norms by which a unit is written and read."""
    return torch.stack([column_norms_of(site), *written_norms(site)]).prod(0)


def written_norms(site: Site) -> list[Tensor]:
    """-> [U] of a neuron's row of the gate, and [U] of what else writes it; none of heads."""
    rows = [part for writer in site.writers for part in values_of(writer).split(site.units)]
    if site.inside_experts:
        written = whole(site.reader.get_parameter("gate_up_proj").detach())  # [X, 2F, E]
        rows = [half.flatten(0, 1) for half in written.chunk(2, 1)]
    return [part.float().norm(dim=1) for part in rows]


def shaped(values: Tensor, site: Site) -> Tensor:
    """[U * D] -> [U, D]."""
    return values.view(site.units, site.width)


def standardised(scores: Tensor) -> Tensor:
    """Of one layer."""
    return (scores - scores.mean()) / scores.std().clamp(min=1e-12)
