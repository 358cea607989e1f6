"""Sites for scores that no model gave."""

from collections.abc import Mapping

from torch import Tensor

from shadow.models.sites import Ranking, Site, SiteKey, kind_of


def sites_of(scores: Mapping[SiteKey, Tensor], group: int = 1, experts: int = 1) -> dict[SiteKey, Site]:
    """group: heads that share a key-value head; experts: that the neurons belong to."""
    found = {}
    for (layer, slot), values in scores.items():
        ranking = Ranking(group=group) if slot == "head" else Ranking(experts=experts)
        units = values.shape[-1]
        found[layer, slot] = Site(layer, slot, kind_of(slot), (), units, 1, units, 1, ranking)
    return found
