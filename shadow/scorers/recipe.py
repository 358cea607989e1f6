"""A recipe: how a scorer comes about, what it needs, what it refuses. One class and one YAML a method."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.data.batches import Batch, Loss
from shadow.models.sites import Kind, Point, Site, SiteKey
from shadow.plans.facts import Facts, Traits
from shadow.scorers.predicted import Predicted
from shadow.scorers.protocol import Scorer, brought_by
from shadow.signals import Signal

if TYPE_CHECKING:
    import pytorch_lightning as pl


class Needs(NamedTuple):
    """Of calibration. traces: mean scores by the criterion; means: of activations; fit: a trained predictor,
    and then parts: what its traces hold beside the features and the criterion; sample: windows to run;
    router: to fit a net on windows."""

    traces: bool = False
    means: bool = False
    fit: bool = False
    parts: tuple[str, ...] = ()
    sample: bool = False
    router: bool = False


class Schedule(NamedTuple):
    """Of a fit: the calibration's first windows, how often, and how many at once."""

    windows: int
    epochs: int
    batch_size: int


class Ingredients(Protocol):
    """What a job has found or made; each is made when it is asked for."""

    @property
    def seed(self) -> int: ...

    @property
    def criterion(self) -> str: ...

    @property
    def loss(self) -> Loss:
        """That of the traces."""
        ...

    def static(self) -> Mapping[SiteKey, Tensor]:
        """[U] of each site: the criterion's mean over the calibration."""
        ...

    def means(self) -> Mapping[SiteKey, Tensor]:
        """[U, D] of each site: the activation's mean over the calibration."""
        ...

    def predictor(self) -> Predicted:
        """The trained net of these settings."""
        ...

    def sample(self) -> Sequence[Batch]:
        """The calibration's first windows, as many as `sparsity.budget_windows`."""
        ...

    def fitted(self, module: "pl.LightningModule", net: nn.Module, schedule: Schedule) -> None:
        """net, a part of module, becomes what module fits on batches of the calibration."""
        ...


class Recipe(Protocol):
    """The settings of a method, as its YAML gives them by `_target_`; its `__init__` refuses bad values."""

    def traits(self, criterion: str, layers: int) -> Traits:
        """What its scorer will be, of a model of so many layers."""
        ...

    def needs(self, criterion: str) -> Needs: ...

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        """One sentence that names setting, rule and value, with the cure; None if nothing is wrong.

        Said here is what concerns this method alone: how any scorer and its policy fit each other is said in
        `plans.refusals`.
        """
        ...

    def build(self, model: PreTrainedModel, have: Ingredients) -> Scorer: ...


class TrainingFree:
    """A scorer for which nothing is collected or fitted is its own recipe.

    A class that inherits from this one says which kinds it scores and at which points it reads, and has
    `signals` and `scores`; its `__init__` takes the keys of its YAML.
    """

    kinds: frozenset[Kind]
    points: frozenset[Point]

    def traits(self, criterion: str, layers: int) -> Traits:
        steps = layers if self.points else 0
        return Traits(
            name=type(self).__name__,
            kinds=self.kinds,
            points=self.points,
            steps=steps,
            compiled=getattr(self, "compiled", False),
            scaled=getattr(self, "scaled", False),
            by_criterion=False,
            stands_in=brought_by(self),
        )

    def needs(self, criterion: str) -> Needs:
        return Needs()

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return None

    def build(self, model: PreTrainedModel, have: Ingredients) -> Scorer:
        return self

    def signals(self, sites: Sequence[Site]) -> Sequence[Signal]:
        """As a `Scorer` has them."""
        raise NotImplementedError

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> Mapping[SiteKey, Tensor]:
        """As a `Scorer` has them."""
        raise NotImplementedError
