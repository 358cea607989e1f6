"""A recipe: how a scorer comes about, what it needs, what it refuses. One class and one YAML a method."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from shadow.plans.facts import Facts, Traits
from shadow.plans.policy import Unit
from shadow.scorers.nets import Scorer


class Needs(NamedTuple):
    """Of calibration. traces: mean scores by the criterion; means: of activations; fit: a trained predictor."""

    traces: bool = False
    means: bool = False
    fit: bool = False


class Ingredients(Protocol):
    """What a job has found or made; each is made when it is asked for."""

    seed: int
    criterion: str
    loss: str  # of traces: `answer` or `next_token`

    def static(self) -> Mapping[Unit, Tensor]:
        """[U] of each site: the criterion's mean over the calibration."""
        ...

    def means(self) -> Mapping[Unit, Tensor]:
        """[U, D] of each site: the activation's mean over the calibration."""
        ...

    def predictor(self) -> Scorer:
        """The trained net of these settings."""
        ...


class Recipe(Protocol):
    """The settings of a method, as its YAML gives them by `_target_`; refuses values that are none at once."""

    def traits(self, criterion: str) -> Traits: ...

    def needs(self, criterion: str) -> Needs: ...

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        """One sentence that names setting, rule and value, with the cure; None if nothing is wrong."""
        ...

    def build(self, model: PreTrainedModel, have: Ingredients) -> Scorer: ...
