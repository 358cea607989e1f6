"""Trained nets as scorers."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.artifacts.learnt_policies import CURE, case_of
from shadow.data.batches import Batch, last_of, logits_of, mean_of
from shadow.errors import UserError
from shadow.models.kinds import find_sites, width_of
from shadow.models.layouts import find_layers
from shadow.models.sites import Kind, Point, Site, SiteKey, Source, count_units
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.nets import TapNet
from shadow.signals import Signal, hook_signals
from shadow.terminal.digits import digits

Pooling = Literal["scores", "mean", "last", "attention"]


class Shape(NamedTuple):
    """Of a language model, as far as a predictor must fit it. width: E; units: in a layer, of each kind that
    the predictor scores."""

    layers: int
    width: int
    units: dict[Kind, int]

    def described(self) -> str:
        units = " and ".join(f"{count} {kind}s" for kind, count in self.units.items())
        return f"{self.layers} layers of width {self.width} with {units} each"


class Predicted:
    """A trained net as a scorer.

    source: what its taps read, the input state of their layer or what its heads give out, [B, T, H * D].
    pooling: how positions that decide together are joined: the `scores` of each are averaged, or their states
    are first (`mean`), only the `last` one is read, or the net joins them itself, by its `attention`.
    means: [U, D] of every unit's activation over the calibration: what `sparse` takes for its `fill`.
    deviates: whether it ranks units by how far they are from their means, which then stand in for what goes.
    policies: those with thresholds that were learnt for it, by `decided_at` and level.
    """

    def __init__(
        self,
        net: TapNet,
        pooling: Pooling,
        source: Source = "state",
        means: Mapping[SiteKey, Tensor] | None = None,
        deviates: bool = False,
        policies: Mapping[tuple[str, float], SparsityPolicy] | None = None,
    ) -> None:
        if (pooling == "attention") != (net.attention is not None):
            raise UserError(
                f"predictor.pooling=attention is for nets that attend, and for these alone, got {pooling!r}"
            )
        self.net = net
        self.pooling, self.source = pooling, source
        self.means, self.deviates = dict(means or {}), deviates
        self.policies = dict(policies or {})
        self.taps = net.taps

    def policy(self, level: float, decided_at: str = "token") -> SparsityPolicy:
        """With the thresholds that were learnt for this level, so that tokens keep more or fewer units.

        decided_at: give the same to `sparse`. Raises UserError where none were learnt.
        """
        found = self.policies.get(case_of(decided_at, level))
        if found is None:
            learnt = f"it has them for {sorted(self.policies)}" if self.policies else "it has none at all"
            raise UserError(
                f"this predictor has no thresholds for level {level} decided at {decided_at}, and {learnt}: "
                f"{CURE}, and shadow.fit.thresholds.learn learns them too"
            )
        return found

    def __repr__(self) -> str:
        units = " and ".join(f"{count} {kind}s" for kind, count in self.shape.units.items())
        levels = sorted({level for _, level in self.policies})
        return (
            f"Predicted({digits(self.weights / 1e6)} M parameters; scores {units} in each of layers "
            f"{self.first} to {self.shape.layers - 1} from taps {list(self.taps)}; thresholds for levels "
            f"{levels or 'none'})"
        )

    @property
    def first(self) -> int:
        """The first layer that is scored."""
        return self.net.first

    @property
    def dense_layers(self) -> range:
        """Those that are not scored, and the first one, which stays whole for every scorer."""
        return range(max(self.first, 1))

    @property
    def kinds(self) -> frozenset[Kind]:
        """Those that are scored."""
        return frozenset(self.net.kinds)

    @property
    def pooled(self) -> bool:
        """Whether it reads whole prompts, and says nothing of a single token."""
        return self.pooling != "scores"

    @property
    def compiled(self) -> bool:
        """Whether a compiled step can ask its nets."""
        return self.net.plain and self.source == "state"

    @property
    def weights(self) -> int:
        """Numbers that are read to score a token."""
        return sum(values.numel() for values in self.net.parameters() if values.requires_grad)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        point: Point = "layer_input" if self.source == "state" else "head_output"
        return [Signal(tap, point) for tap in self.taps]

    @property
    def shape(self) -> Shape:
        """Of the model that the net was made for."""
        last = self.net.reader(self.taps[-1])
        return Shape(last.span.stop, last.width, last.units)

    def require(self, model: PreTrainedModel) -> None:
        """Refuse a model of another shape than that which the net was made for."""
        asked, counts = self.shape, count_units(find_sites(model))
        units = {kind: counts[kind] for kind in self.net.kinds}
        found = Shape(len(find_layers(model)), width_of(model, self.source), units)
        if asked != found:
            raise UserError(
                f"the predictor is for a model of {asked.described()}, and this one has {found.described()}: "
                "load the model that it was trained for, or train one for this model"
            )

    @torch.no_grad()
    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> Mapping[SiteKey, Tensor]:
        state, reader = x, self.net.reader(signal.layer).to(x.device)
        pool = None if pool is None else pool.to(x.device)
        if self.net.attention is not None:
            assert pool is not None, "a net that attends scores no single token"
            return reader.of_layers(self.net.attention.to(state.device)(state, pool))
        if pool is None:
            return reader.of_layers(state)
        if self.pooling == "scores":
            return {unit: mean_of(values, pool) for unit, values in reader.of_layers(state).items()}
        return reader.of_layers({"mean": mean_of, "last": last_of}[self.pooling](state.float(), pool))


class DenseFed:
    """A trained net that reads what a dense pass over the sample leaves at its taps: how the reference's code
    feeds its layerwise predictor, and not possible in use, where late taps read what pruning has changed."""

    def __init__(self, predicted: Predicted) -> None:
        self.predicted, self.kinds, self.first = predicted, predicted.kinds, predicted.first
        self.pooled, self.means, self.deviates = predicted.pooled, predicted.means, predicted.deviates
        self.weights = predicted.weights
        self.seen: dict[Signal, Tensor] = {}

    def require(self, model: PreTrainedModel) -> None:
        self.predicted.require(model)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return self.predicted.signals(sites)

    def look(self, model: PreTrainedModel, batch: Batch) -> None:
        with torch.no_grad(), hook_signals(model, self.signals([]), self.seen.__setitem__):
            logits_of(model, batch)

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> Mapping[SiteKey, Tensor]:
        if signal not in self.seen:
            raise UserError("a dense-fed predictor must see the sample first: run `Run.logits`")
        return self.predicted.scores(signal, self.seen[signal], pool)
