"""R-Sparse: inputs by what they weigh in the projection, and a part of low rank for the others."""

from transformers import PreTrainedModel

from shadow.errors import require_number
from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, Point, Site, column_norms_of
from shadow.plans.facts import Facts, Traits
from shadow.plans.low_rank_rest import LowRankRest, bases_of
from shadow.scorers.recipe import Ingredients, TrainingFree
from shadow.scorers.scaled import Backed


class RankAware(TrainingFree):
    """R-Sparse (arXiv 2504.19449): |x| times the norm of the column, and W_r x for what goes.

    Of what is read, `alpha` is columns of channels and the rest the two factors of W_r: at a level of l, the
    share of channels that go, (1 - l) / alpha of the weights are read. Ranks come from the true sizes: the
    authors' code takes k and v of grouped queries for as large as q. Projections that read one input are one
    matrix here, with one W_r. The authors search alpha for each layer; here it is one.
    """

    kinds: frozenset[Kind] = frozenset({"channel"})
    points: frozenset[Point] = frozenset({"site"})

    def __init__(self, level: float, alpha: float) -> None:
        require_number("predictor.level", level, "in [0, 1)", lambda share: 0 <= share < 1)
        require_number("predictor.alpha", alpha, "in (0, 1]", lambda share: 0 < share <= 1)
        self.level, self.alpha = level, alpha

    def traits(self, criterion: str, layers: int) -> Traits:
        return super().traits(criterion, layers)._replace(stands_in=LowRankRest.__name__)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        if facts.policy.level > 0 and self.level < 1 - self.alpha:
            return (
                f"predictor.alpha={self.alpha} leaves {1 - self.alpha:.2g} of what is read to the part of "
                f"low rank, and sparsity.level must be at least that, got {self.level}: give a larger alpha"
            )
        if facts.experts > 1:
            return (
                f"{facts.scorer.name} has one part of low rank for all that reads an input, and experts read "
                "it each for itself: use predictor=wina or teal"
            )
        return None

    def build(self, model: PreTrainedModel, have: Ingredients) -> Backed:
        sites = find_sites(model, ["channel"])
        norms = {site.key: column_norms_of(site) for site in sites}
        bases = {site.key: bases_of(site, self.rank_of(site)) for site in sites}
        return Backed("channel", "site", norms, stand_in=LowRankRest(bases))

    def rank_of(self, site: Site) -> int:
        """As many as fit into the rest of what is read."""
        share = (1 - self.level) * (1 - self.alpha) / self.alpha
        return int(share * site.units * site.cost / (site.units + site.cost))
