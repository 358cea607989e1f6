"""What criteria see of a batch, for the tests that compare it with formulas by hand."""

import torch

from shadow.criteria.one_pass import score
from shadow.models.kinds import find_sites


def drawn_means(lm):
    """Means such as a store keeps, but drawn: [U, D] of each layer and kind."""
    draw = torch.Generator().manual_seed(5)
    return {
        (site.layer, site.kind): torch.randn(site.units, site.width, generator=draw) * 0.3
        for site in find_sites(lm.model)
    }


def seen_of(lm, batch, names, loss="answer"):
    """-> {(criterion, layer, kind): what was seen}"""
    found = {}

    def receive(name, site, seen):
        found[name, site.layer, site.kind] = seen

    score(lm.model, batch, names, receive, loss=loss, means=drawn_means(lm))
    return found
