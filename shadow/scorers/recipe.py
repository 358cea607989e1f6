"""A recipe: how a scorer comes about, what it needs, what it refuses. One class and one YAML a method."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, Self

from torch import Tensor
from transformers import PreTrainedModel

from shadow.models.sites import Kind, Point, Site, SiteKey
from shadow.plans.facts import Facts, Traits
from shadow.scorers.protocol import Scorer
from shadow.signals import Signal


class Needs(NamedTuple):
    """Of calibration. traces: mean scores by the criterion; means: of activations; fit: a trained net."""

    traces: bool = False
    means: bool = False
    fit: bool = False


class Ingredients(Protocol):
    """What a job has found or made; each is made when it is asked for."""

    seed: int
    criterion: str
    loss: str  # of traces: `answer` or `next_token`

    def static(self) -> Mapping[SiteKey, Tensor]:
        """[U] of each site: the criterion's mean over the calibration."""
        ...

    def means(self) -> Mapping[SiteKey, Tensor]:
        """[U, D] of each site: the activation's mean over the calibration."""
        ...

    def predictor(self) -> Scorer:
        """The trained net of these settings."""
        ...


class Recipe(Protocol):
    """The settings of a method, as its YAML gives them by `_target_`; what is no value it refuses at once."""

    def traits(self, criterion: str) -> Traits: ...

    def needs(self, criterion: str) -> Needs: ...

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        """One sentence that names setting, rule and value, with the cure; None if nothing is wrong."""
        ...

    def build(self, model: PreTrainedModel, have: Ingredients) -> Scorer: ...


class TrainingFree:
    """A scorer that is its own recipe: it needs nothing, refuses nothing, and is built as it is."""

    kinds: frozenset[Kind]
    points: frozenset[Point]

    def traits(self, criterion: str) -> Traits:
        return Traits(type(self).__name__, self.kinds, self.points, steps=2)

    def needs(self, criterion: str) -> Needs:
        return Needs()

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return None

    def build(self, model: PreTrainedModel, have: Ingredients) -> Self:
        return self

    def signals(self, sites: Sequence[Site]) -> Sequence[Signal]:
        raise NotImplementedError

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> Mapping[SiteKey, Tensor]:
        raise NotImplementedError
