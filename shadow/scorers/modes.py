"""SCAP: inputs by their distance from the mode that stands in for them."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import gaussian_kde
from torch import Tensor
from transformers import PreTrainedModel

from shadow.errors import require_number, require_whole
from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, Point, Site
from shadow.plans.facts import Facts, Traits
from shadow.plans.stand_ins import Mean
from shadow.scorers.calibrated import rows_of, sent_elsewhere
from shadow.scorers.recipe import Ingredients, Needs, TrainingFree
from shadow.scorers.scaled import Backed, seen_at

PEAK_VALUES, PEAK_PLACES = 2000, 400  # numbers that a density is estimated from, and places at which it is


class ModeDistance(TrainingFree):
    """SCAP (arXiv 2412.07174): an input matters as much as it is far from its site's mode, one number.

    What goes is the mode and not zero, so that its part of what is written is a constant. The mode is zero,
    the median, or the peak of a density of Gaussians, whichever leaves what is written nearest to what it was
    on the calibration at this level. The authors prune the inputs of the FFN, sparsity.slots=[gate_up,down],
    with a level for each; those of attention are pruned too here, unless slots says so, and
    sparsity.budgets=block finds levels.
    """

    kinds: frozenset[Kind] = frozenset({"channel"})
    points: frozenset[Point] = frozenset({"site"})

    def __init__(self, level: float, tokens: int) -> None:
        require_number("predictor.level", level, "in [0, 1)", lambda share: 0 <= share < 1)
        require_whole("predictor.tokens", tokens, 1)
        self.level, self.tokens = level, tokens

    def traits(self, criterion: str, layers: int) -> Traits:
        return super().traits(criterion, layers)._replace(stands_in="mean")

    def needs(self, criterion: str) -> Needs:
        return Needs(sample=True)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return sent_elsewhere(facts)

    def build(self, model: PreTrainedModel, have: Ingredients) -> Backed:
        sites = find_sites(model, ["channel"])
        rows = rows_of(model, [seen_at(site, "site") for site in sites], have.sample(), self.tokens)
        centres = {site.key: best_mode(site, rows[seen_at(site, "site")], self.level) for site in sites}
        values = {site.key: torch.full((site.units, site.width), centres[site.key]) for site in sites}
        return Backed("channel", "site", centres=centres, stand_in=Mean(values))


class Tried(NamedTuple):
    error: float
    mode: float


def best_mode(site: Site, x: Tensor, level: float) -> float:
    """x: [N, U] of the calibration."""
    weight = site.columns()[..., 0].float()  # [E, U]
    tried = []
    for mode in (0.0, float(x.median()), peak(x)):
        away = (x - mode).abs()
        cut = away.flatten().kthvalue(max(int(level * away.numel()), 1)).values
        lost = torch.where(away > cut, 0.0, x - mode) @ weight.T
        tried.append(Tried(float(lost.norm()), mode))
    return min(tried).mode


def peak(x: Tensor) -> float:
    """The place of the highest density of all numbers, between the 1st and the 99th hundredth of them."""
    step = max(x.numel() // PEAK_VALUES, 1)
    values = x.flatten()[::step].double().cpu().numpy()
    low, high = np.quantile(values, [0.01, 0.99])
    if low == high:
        return float(low)
    places = np.linspace(low, high, PEAK_PLACES)
    return float(places[gaussian_kde(values)(places).argmax()])
