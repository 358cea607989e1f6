"""The recipes of scorers that nobody trains."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from shadow.criteria import BESIDE_MEANS, RANDOM, REMOVAL, STATISTICS
from shadow.errors import require_whole
from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, SiteKey
from shadow.plans.facts import Facts, Traits
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.low_rank import LowRankCopy
from shadow.scorers.oracle import Oracle
from shadow.scorers.prompt import PromptActivation
from shadow.scorers.recipe import Ingredients, Needs

OF_CRITERIA: frozenset[Kind] = frozenset({"head", "neuron"})  # what criteria score


class Static:
    """The criterion's mean over the calibration, the same for every prompt."""

    def traits(self, criterion: str, layers: int) -> Traits:
        return Traits("static", OF_CRITERIA)

    def needs(self, criterion: str) -> Needs:
        return Needs(traces=criterion != RANDOM)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return None

    def build(self, model: PreTrainedModel, have: Ingredients) -> Fixed:
        return Fixed(have.static())


class Random:
    """Scores drawn once by the seed."""

    def traits(self, criterion: str, layers: int) -> Traits:
        return Traits("random", OF_CRITERIA)

    def needs(self, criterion: str) -> Needs:
        return Needs()

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return None

    def build(self, model: PreTrainedModel, have: Ingredients) -> Fixed:
        return Fixed(random_scores(find_sites(model), have.seed))


class OracleOfSample:
    """The sample's own criterion, from a dense pass that has seen it."""

    def traits(self, criterion: str, layers: int) -> Traits:
        return Traits("oracle", OF_CRITERIA, frozenset({"layer_input"}), looks=True, steps=1)

    def needs(self, criterion: str) -> Needs:
        return Needs(means=criterion in BESIDE_MEANS)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        if criterion == REMOVAL and facts.decided_at == "token":
            return removes_over_windows(facts)
        return of_many_windows(criterion, facts)

    def build(self, model: PreTrainedModel, have: Ingredients) -> Oracle:
        return Oracle(have.criterion, have.loss, means_beside(have))


class PromptCriterion:
    """The criterion over the prompt alone, from a dense pass over it: GRIFFIN and its sisters."""

    def traits(self, criterion: str, layers: int) -> Traits:
        return Traits("prompt", OF_CRITERIA, frozenset({"layer_input"}), looks=True, steps=1)

    def needs(self, criterion: str) -> Needs:
        return Needs(means=criterion in BESIDE_MEANS)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        if criterion == REMOVAL:
            return removes_over_windows(facts)
        if facts.decided_at != "prompt":
            return (
                f"{facts.scorer.name} knows the prompt alone, all of it: use sparsity.decided_at=prompt, got "
                f"{facts.decided_at}"
            )
        return of_many_windows(criterion, facts)

    def build(self, model: PreTrainedModel, have: Ingredients) -> PromptActivation:
        return PromptActivation(have.criterion, means_beside(have))


@dataclass(frozen=True)
class LowRankWeights:
    """Neurons by a low-rank copy of each layer's own FFN weights; heads by the static mean."""

    rank: int

    def __post_init__(self) -> None:
        require_whole("predictor.rank", self.rank, 1)

    def traits(self, criterion: str, layers: int) -> Traits:
        return Traits("low rank", OF_CRITERIA, frozenset({"layer_input"}), steps=layers - 1, first=1)

    def needs(self, criterion: str) -> Needs:
        return Needs(traces=criterion != RANDOM, means=criterion in BESIDE_MEANS)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return None

    def build(self, model: PreTrainedModel, have: Ingredients) -> LowRankCopy:
        heads = {layer: scores for (layer, kind), scores in have.static().items() if kind == "head"}
        means = None
        if (found := means_beside(have)) is not None:
            means = {layer: mean.flatten() for (layer, kind), mean in found.items() if kind == "neuron"}
        return LowRankCopy(model, self.rank, heads, means)


def means_beside(have: Ingredients) -> dict[SiteKey, Tensor] | None:
    """Of a criterion that measures how far a unit is from them; of others None."""
    return dict(have.means()) if have.criterion in BESIDE_MEANS else None


def of_many_windows(criterion: str, facts: Facts) -> str | None:
    """Refuses criteria that a sample alone does not have."""
    if criterion not in STATISTICS:
        return None
    return (
        f"criterion={criterion} compares many windows and says nothing of one prompt: use predictor=static, "
        f"got {facts.scorer.name}"
    )


def removes_over_windows(facts: Facts) -> str:
    return (
        "criterion=removal tries every unit on the sample itself, over windows: use predictor=oracle and "
        f"sparsity.decided_at=prompt or sequence, got {facts.scorer.name} and {facts.decided_at}"
    )
