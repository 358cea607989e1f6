"""The recipe of all trained nets: their settings, what these mean, and what they refuse."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_args

from transformers import PreTrainedModel

from shadow.criteria import BESIDE_MEANS, RANDOM
from shadow.errors import UserError, require_choice
from shadow.fit.module import Descent
from shadow.fit.objectives import Active, Cutoff, Listwise, LogSquares, Objective, Pairwise
from shadow.fit.rows import Reading
from shadow.fit.values import SCORED, are_levels, require_kinds, require_numbers, require_taps
from shadow.models.sites import Kind, Source
from shadow.plans.facts import DecidedAt, Facts, Traits
from shadow.plans.refusals import reads_whole_prompts
from shadow.scorers.nets import NetShape
from shadow.scorers.paper_nets import MinMax, MLPShape, read_raw
from shadow.scorers.predicted import DenseFed, Pooling
from shadow.scorers.protocol import Scorer
from shadow.scorers.recipe import Ingredients, Needs
from shadow.scorers.recipes import of_many_windows
from shadow.traces.shards import CONTEXTS, EMBEDDINGS, FEATURES

LOSSES = ("log_mse", "listwise", "pairwise", "cutoff", "bce", "min_max_layer", "min_max_global")
SCHEDULES = ("cosine", "constant_with_warmup")


@dataclass(frozen=True)
class Net:
    """What each setting means stands in conf/predictor/unified.yaml."""

    IN_USE: ClassVar = ("dense_fed", "raw_inputs")  # how the net is used: a fit does not depend on them

    taps: int | str | list[int]
    source: Source
    ahead: int
    kinds: list[Kind]
    pooling: Pooling
    rank: int
    hidden: int
    depth: int
    loss: str
    active: dict[Kind, Any]
    mlp: dict[str, Any] | None
    floor: float
    ridge: float | None
    epochs: int
    batch_size: int
    lr: float
    warmup: float
    schedule: str
    clip: float | None
    beta2: float
    weight_decay: float
    last_weight_decay: float
    rounds: int
    levels: list[float]
    val_share: float
    dense_fed: bool
    raw_inputs: bool

    def __post_init__(self) -> None:
        require_numbers(asdict(self))
        require_choice("predictor.source", self.source, get_args(Source))
        require_choice("predictor.pooling", self.pooling, get_args(Pooling))
        require_choice("predictor.loss", self.loss, LOSSES)
        require_choice("predictor.schedule", self.schedule, SCHEDULES)
        require_taps(self.taps, self.ahead)
        require_kinds(self.kinds)
        for wrong in (self._wrong_reading(), self._wrong_net(), self._wrong_fit()):
            if wrong:
                raise UserError(wrong)

    # What it is

    @property
    def as_trained(self) -> bool:
        """Whether it is used as it was trained."""
        return not (self.dense_fed or self.raw_inputs)

    @property
    def scored(self) -> list[Kind]:
        """The kinds, in the order of all kinds."""
        return [kind for kind in SCORED if kind in self.kinds]

    def traits(self, criterion: str, layers: int) -> Traits:
        taps = [] if self._wrong_taps(layers) else self.taps_in(layers)
        return Traits(
            "net",
            frozenset(self.kinds),
            frozenset({"layer_input" if self.source == "state" else "head_output"}),
            looks=self.dense_fed,
            steps=len(taps),
            first=taps[0] + self.ahead if taps else 0,
            pooled=self.pooling != "scores",
            compiled=self.mlp is None,
        )

    def needs(self, criterion: str) -> Needs:
        if self.source == "context":
            parts: tuple[str, ...] = (CONTEXTS,)
        else:
            parts = (EMBEDDINGS,) if self.pooling == "attention" else ()
        return Needs(traces=criterion != RANDOM, fit=True, parts=parts)

    def build(self, model: PreTrainedModel, have: Ingredients) -> Scorer:
        predicted = have.predictor()
        if self.raw_inputs:
            read_raw(predicted.net)
        return DenseFed(predicted) if self.dense_fed else predicted

    # What a fit asks

    def reading(self, decided_at: DecidedAt) -> Reading:
        """Which rows of a store it learns from, and what of them it reads."""
        if self.pooling == "scores":
            return Reading("token", "state", FEATURES)
        if decided_at == "token":
            raise UserError(reads_whole_prompts(f"a predictor with predictor.pooling={self.pooling}"))
        if self.pooling == "attention":
            return Reading("window", decided_at, EMBEDDINGS)
        return Reading(
            "window", f"{decided_at}/{self.pooling}", CONTEXTS if self.source == "context" else FEATURES
        )

    def taps_in(self, layers: int) -> list[int]:
        """The layers `predictor.taps` of a model of so many.

        A number of taps is spread so that what they score begins evenly from layer 1 on, or from layer
        `predictor.ahead` on if that is later.
        """
        if wrong := self._wrong_taps(layers):
            raise UserError(wrong)
        if isinstance(self.taps, list):
            return list(self.taps)
        first = max(1, self.ahead)
        count = min(self.taps, layers - first) if isinstance(self.taps, int) else layers - first
        return [first - self.ahead + index * (layers - first) // count for index in range(count)]

    def shape(self) -> NetShape | MLPShape:
        if self.mlp is None:
            return NetShape(self.rank, self.hidden, self.depth)
        return MLPShape(**self.mlp, attends=self.pooling == "attention")

    def objectives(self) -> dict[Kind, Objective]:
        """Of each kind that it scores."""
        return {kind: self._objective(kind) for kind in self.scored}

    def descent(self) -> Descent:
        return Descent(
            self.lr, self.weight_decay, self.last_weight_decay, self.beta2, self.warmup, self.schedule
        )

    def _objective(self, kind: Kind) -> Objective:
        if self.loss == "log_mse":
            return LogSquares(self.floor)
        if self.loss == "listwise":
            return Listwise(self.floor)
        if self.loss == "pairwise":
            return Pairwise(self.floor)
        if self.loss == "cutoff":
            return Cutoff(self.floor, self.active[kind])
        if self.loss == "bce":
            return Active(None if self._positive(kind) else self.active[kind])
        return MinMax("layer" if self.loss == "min_max_layer" else "global")

    def _positive(self, kind: Kind) -> bool:
        """Whether what is above 0 is active: of neurons behind a ReLU."""
        return self.loss == "bce" and kind == "neuron" and self.active[kind] == "positive"

    # What it refuses

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return (
            of_many_windows(criterion, facts)
            or self._wrong_criterion(criterion, facts)
            or self._wrong_taps(facts.layers)
            or (self._wrong_policy(facts) if facts.policy.level > 0 else None)
        )

    def _wrong_criterion(self, criterion: str, facts: Facts) -> str | None:
        if criterion in (RANDOM, "grasp"):
            return (
                f"a predictor learns how large a score is, and criterion={criterion} is "
                f"{'the same for every prompt' if criterion == RANDOM else 'of either sign'}: use "
                f"predictor=static or predictor=oracle, got {facts.scorer.name}"
            )
        if criterion in BESIDE_MEANS and any(self._positive(kind) for kind in self.scored):
            return (
                "predictor.active.neuron=positive needs a criterion that is 0 for what a ReLU silences: use "
                f"criterion=l2_norm, got criterion={criterion}, the distance from a mean"
            )
        return None

    def _wrong_policy(self, facts: Facts) -> str | None:
        scope = facts.policy.scope
        if self.raw_inputs and (self.mlp is None or not self.mlp["scaled"]):
            return (
                "predictor.raw_inputs leaves out the scaling that the paper's nets were trained with, and "
                f"{facts.scorer.name} has none: give predictor.raw_inputs=false"
            )
        if scope == "global" and self.loss == "bce":
            return (
                "predictor.loss=bce learns which units of a layer are active, and its logits do not compare "
                f"across layers: give sparsity.scope=layer, got {scope}"
            )
        if scope != "layer" and self.loss in ("listwise", "pairwise", "cutoff"):
            return (
                f"predictor.loss={self.loss} learns the order within a layer, and not how "
                f"{'layers' if scope == 'global' else 'tokens'} compare: give sparsity.scope=layer, got "
                f"{scope}"
            )
        return None

    def _wrong_taps(self, layers: int) -> str | None:
        if isinstance(self.taps, list):
            if all(0 <= tap < layers - self.ahead for tap in self.taps):
                return None
            return (
                f"predictor.taps must be layers in [0, {layers - self.ahead}) of this model of {layers} "
                f"layers, as each scores from predictor.ahead={self.ahead} layers on, got {self.taps}"
            )
        if isinstance(self.taps, int) and self.taps > layers:
            return (
                f"predictor.taps must be at most this model's {layers} layers, or `each`, got {self.taps}: a "
                "layer has one tap"
            )
        if max(1, self.ahead) < layers:
            return None
        return (
            f"predictor.ahead must be less than this model's {layers} layers, got {self.ahead}: nothing is "
            "scored"
        )

    def _wrong_reading(self) -> str | None:
        if self.pooling == "scores" and self.source == "context":
            return (
                "predictor.source=context is kept of whole prompts only: use predictor.pooling=last or mean, "
                f"got {self.pooling!r}"
            )
        if self.pooling != "attention":
            return None
        if self.source != "state" or self.taps != [0]:
            return (
                "predictor.pooling=attention reads the embeddings of all positions: give predictor.taps=[0] "
                f"and predictor.source=state, got {self.taps} and {self.source}"
            )
        if self.mlp is None:
            return (
                "predictor.pooling=attention is of the paper's nets and needs predictor.mlp, got null: use "
                "predictor=unified_sequence, or predictor.pooling=scores, mean or last"
            )
        return None

    def _wrong_net(self) -> str | None:
        if self.mlp is not None and self.ridge is not None:
            return (
                "predictor.mlp has no linear map for a regression to start from: give predictor.ridge=null, "
                f"got {self.ridge}"
            )
        if self.loss == "bce" and self.ridge is not None:
            return (
                "predictor.loss=bce learns logits, where the ridge regression does not start: give "
                f"predictor.ridge=null, got {self.ridge}"
            )
        for kind in self.scored if self.loss in ("bce", "cutoff") else ():
            levels = self.active[kind]
            if not self._positive(kind) and not are_levels(levels):
                positive = "`positive`, or " if self.loss == "bce" and kind == "neuron" else ""
                return (
                    f"predictor.active.{kind} must be {positive}levels in (0, 1) whose plans keep what is "
                    f"active, got {levels} with predictor.loss={self.loss}"
                )
        return None

    def _wrong_fit(self) -> str | None:
        if self.epochs == 0 and (self.ridge is None or self.depth):
            return (
                "predictor.epochs=0 leaves the ridge regression as it is, a linear map: give predictor.ridge "
                f"a number and predictor.depth=0, got {self.ridge} and {self.depth}"
            )
        if self.rounds == 0:
            return None
        if not are_levels(self.levels) or len(set(self.levels)) < len(self.levels):
            return (
                "predictor.levels must be shares of units removed, each in (0, 1) and given once, got "
                f"{self.levels}"
            )
        if self.pooling != "scores":
            return (
                f"predictor.rounds={self.rounds} needs predictor.pooling=scores, got {self.pooling!r}: later "
                "rounds learn from the states of single tokens"
            )
        return None
