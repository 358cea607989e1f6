"""Who says what matters: the trained net and the trivial scorers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.artifacts.learnt_policies import CURE, case_of
from shadow.criteria import BESIDE_MEANS, CONTEXTUAL, REMOVAL, Seen
from shadow.criteria.one_pass import score
from shadow.criteria.removal import Exact, removal
from shadow.criteria.statistics import Shown
from shadow.data.batches import Batch, Loss, logits_of
from shadow.errors import UserError
from shadow.models.sites import Kind, Site, Source, find_sites, listen
from shadow.plans.policy import SparsityPolicy, Unit
from shadow.scorers.paper_nets import Attention, MLPReader, MLPShape
from shadow.traces.collector import last_of, mean_of

Pooling = Literal["scores", "mean", "last", "attention"]


class Scorer(Protocol):
    """Scores for a prompt; higher stays longer.

    taps: the layers whose input state is read; () for a scorer that reads nothing, and is asked once.
    """

    @property
    def taps(self) -> Sequence[int]: ...

    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> Mapping[Unit, Tensor]:
        """state: [B, T, E] at this tap -> scores of every unit of its layers: those up to the next tap, or so
        many ahead of them.

        They are [B, T, U] per token, or with pool: bool [B, T], the positions that decide together, [B, U].
        """
        ...


@runtime_checkable
class Looks(Protocol):
    """A scorer that runs a dense pass over the sample, or over its prompt, before the sparse one."""

    def look(self, model: PreTrainedModel, batch: Batch) -> None: ...


class Fixed:
    """The same scores for every prompt: the mean over calibration, or random ones."""

    taps = ()

    def __init__(self, scores: Mapping[Unit, Tensor]) -> None:
        self.scores = dict(scores)

    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> Mapping[Unit, Tensor]:
        return self.scores


def random_scores(sites: Sequence[Site], seed: int) -> dict[Unit, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {(site.layer, site.kind): torch.rand(site.units, generator=draw) for site in sites}


class Oracle:
    """The sample's own criterion, from a dense pass over the sample: a bound, not a method."""

    taps = (0,)

    def __init__(
        self, criterion: str, loss: Loss = "answer", means: Mapping[Unit, Tensor] | None = None
    ) -> None:
        """means: [U, D] of every site's activation over the calibration, for `l2_deviation`."""
        allowed = [*CONTEXTUAL, *BESIDE_MEANS, REMOVAL]
        if criterion not in allowed:
            raise UserError(f"an oracle's criterion must be in {allowed}, got {criterion!r}")
        self.criterion, self.loss, self.means = criterion, loss, means
        self.seen: dict[Unit, Seen] = {}

    def look(self, model: PreTrainedModel, batch: Batch) -> None:
        def receive(name: str, site: Site, seen: Seen | Shown) -> None:
            assert not isinstance(seen, Shown)
            self.seen[site.layer, site.kind] = seen

        if self.criterion != REMOVAL:
            score(model, batch, [self.criterion], receive, loss=self.loss, means=self.means)
            return
        units = {site: torch.arange(site.units) for site in find_sites(model)}
        for site, change in removal(model, batch, units, self.loss).items():
            self.seen[site.layer, site.kind] = Exact(change)

    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> Mapping[Unit, Tensor]:
        if not self.seen:
            raise UserError("the oracle must see the sample first: run batches through `SparseRun.logits`")
        return {
            unit: seen.tokens() if pool is None else seen.window(pool) for unit, seen in self.seen.items()
        }


class NetShape(NamedTuple):
    """Of the net behind a tap: `rank` numbers carry all that is said of a state; `depth` hidden layers of
    width `hidden` stand beside the linear map to them, or none."""

    rank: int
    hidden: int
    depth: int


class Tap(nn.Module):
    """From the state at one tap to log scores of its span's units: their mean, and a few numbers' worth more.

    These numbers are a linear map of the state plus what a residual net of GELUs makes of it.
    """

    def __init__(self, span: range, width: int, units: Mapping[Kind, int], shape: NetShape) -> None:
        super().__init__()
        self.span, self.width = span, width
        self.units = dict(units)
        self.center = nn.Buffer(torch.zeros(width))
        self.scale = nn.Buffer(torch.ones(width))
        self.static = nn.ParameterDict(
            {kind: nn.Parameter(torch.zeros(len(span), units[kind]), requires_grad=False) for kind in units}
        )
        # a wider detour would add nothing
        rank = min(shape.rank, width, len(span) * sum(units.values()))
        self.down = nn.Linear(width, rank)
        widths = [width, *[shape.hidden] * shape.depth]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.bend = nn.Linear(shape.hidden, rank, bias=False) if shape.depth else None
        self.up = nn.ModuleDict(
            {kind: nn.Linear(rank, len(span) * units[kind], bias=False) for kind in units}
        )
        if self.bend is not None:
            nn.init.zeros_(self.bend.weight)  # training begins at the linear map
        for linear in self.up.values():
            nn.init.zeros_(linear.get_parameter("weight"))

    @torch.no_grad()
    def set_static(self, center: Tensor, scale: Tensor, mean: Mapping[Kind, Tensor]) -> None:
        """Scale states by these [E], and say this mean, [S, U] of each kind, whatever the state."""
        self.center.copy_(center)
        self.scale.copy_(scale)
        for kind in self.units:
            self.static[kind].copy_(mean[kind])

    @torch.no_grad()
    def set_linear(self, down: Tensor, up: Mapping[Kind, Tensor]) -> None:
        """Add this linear map of the scaled state to it; down: [R, E], up: [S * U, R] of each kind."""
        self.down.weight.copy_(down)
        self.down.bias.zero_()
        for kind in self.units:
            self.up[kind].get_parameter("weight").copy_(up[kind])

    def told(self, state: Tensor) -> Tensor:
        """state: [..., E] -> the few numbers [..., R] that carry all that is said of it."""
        scaled = (state.float() - self.center) / self.scale
        told = self.down(scaled)
        if self.bend is not None:
            first, *others = self.hidden
            hidden = nn.functional.gelu(first(scaled))
            for layer in others:
                hidden = hidden + nn.functional.gelu(layer(hidden))
            told = told + self.bend(hidden)
        return told

    def forward(self, state: Tensor) -> dict[Kind, Tensor]:
        """state: [..., E] -> log scores [..., S, U] of the S layers of the span."""
        told, found = self.told(state), {}
        for kind in self.units:  # the mean as a bias: no second pass over what may be the largest tensor here
            scores = nn.functional.linear(
                told, self.up[kind].get_parameter("weight"), self.static[kind].flatten()
            )
            found[kind] = scores.unflatten(-1, (len(self.span), self.units[kind]))
        return found

    def of_layers(self, state: Tensor) -> "LayerScores":
        """state: [..., E] -> log scores [..., U] of each layer of the span."""
        return LayerScores(self, self.told(state))


class LayerScores(Mapping[Unit, Tensor]):
    """Log scores [..., U] of a tap's layers, each computed when it is asked for: of a whole model they are
    more than caches hold, and those of one layer are ranked while they are in them."""

    def __init__(self, tap: Tap, told: Tensor) -> None:
        """told: [..., R], what the tap's net makes of the states."""
        self.tap, self.told = tap, told
        self.rows = {  # [S, U, R]: names of modules and parameters are looked up once, not for every layer
            kind: up.get_parameter("weight").detach().unflatten(0, (len(tap.span), -1))
            for kind, up in tap.up.items()
        }
        self.static = {kind: static.detach() for kind, static in tap.static.items()}

    @torch.no_grad()
    def __getitem__(self, unit: Unit) -> Tensor:
        layer, kind = unit
        if layer not in self.tap.span or kind not in self.rows:
            raise KeyError(unit)
        index = layer - self.tap.span.start
        return nn.functional.linear(self.told, self.rows[kind][index], self.static[kind][index])

    def __iter__(self) -> Iterator[Unit]:
        return ((layer, kind) for kind in self.tap.units for layer in self.tap.span)

    def __len__(self) -> int:
        return len(self.tap.units) * len(self.tap.span)


class TapNet(nn.Module):
    """Log scores of the whole model from the input states of a few layers, each scoring up to the next.

    What is learnt is only how a prompt deviates from the calibration's mean. One tap is ShadowLLM's unified
    predictor (arXiv 2406.16635); a tap in every layer, reading that layer's input, is DejaVu's shape (arXiv
    2310.17157), and reading the layer before, with ahead=1, DejaVu itself.
    """

    def __init__(
        self,
        taps: Sequence[int],
        layers: int,
        width: int,
        units: Mapping[Kind, int],
        shape: NetShape | MLPShape,
        ahead: int = 0,
    ) -> None:
        """taps: rising layer numbers; layers: of the model; width: of what is read; units: in a layer, of
        each kind that is scored; shape: of each tap's net, the framework's own or the paper's.

        ahead: a tap scores the layers from tap + ahead up to the next tap + ahead.
        """
        super().__init__()
        self.taps, self.shape, self.ahead, self.kinds = list(taps), shape, ahead, list(units)
        self.attention: Attention | None = None
        if isinstance(shape, MLPShape) and shape.attends:
            assert len(self.taps) == 1, "all positions are read at one tap"
            self.attention, shape = Attention(width, shape.scaled), shape._replace(scaled=False)
        starts = [tap + ahead for tap in self.taps]
        spans = [range(start, end) for start, end in zip(starts, [*starts[1:], layers])]
        self.readers: nn.ModuleList = nn.ModuleList(
            MLPReader(span, width, units, shape)
            if isinstance(shape, MLPShape)
            else Tap(span, width, units, shape)
            for span in spans
        )

    @property
    def first(self) -> int:
        """The first layer that is scored."""
        return self.taps[0] + self.ahead

    @property
    def layers(self) -> int:
        """How many are scored."""
        return sum(len(self.reader(tap).span) for tap in self.taps)

    @property
    def plain(self) -> bool:
        """Whether each tap is a `Tap`, whose last map says a layer's scores without those of others."""
        return self.attention is None and all(isinstance(reader, Tap) for reader in self.readers)

    def reader(self, tap: int) -> Tap | MLPReader:
        found = self.readers[self.taps.index(tap)]
        assert isinstance(found, Tap | MLPReader)
        return found

    def forward(self, states: Tensor, inside: Tensor | None = None) -> dict[Kind, Tensor]:
        """states: [N, taps, E] -> log scores [N, S, U] of all layers from `first` on.

        For a net that attends, states: [N, T, E] at its one tap, and inside: bool [N, T], what it may read.
        """
        if self.attention is not None:
            states = self.attention(states, inside)[:, None]
        parts = [self.reader(tap)(states[:, index]) for index, tap in enumerate(self.taps)]
        return {kind: torch.cat([part[kind] for part in parts], 1) for kind in self.kinds}


class Shape(NamedTuple):
    """Of a language model, as far as a predictor must fit it. width: E; units: in a layer, of each kind that
    the predictor scores."""

    layers: int
    width: int
    units: dict[Kind, int]

    def told(self) -> str:
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
        means: Mapping[Unit, Tensor] | None = None,
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
            raise UserError(
                f"this predictor has no thresholds for level {level} decided at {decided_at}, but for "
                f"{sorted(self.policies) or 'none'}: {CURE}, and shadow.fit.thresholds.learn learns them too"
            )
        return found

    @property
    def first(self) -> int:
        """The first layer that is scored."""
        return self.net.first

    @property
    def dense_layers(self) -> range:
        """Those that are not scored, and the first one, which stays whole for every scorer."""
        return range(max(self.first, 1))

    @property
    def kinds(self) -> list[Kind]:
        """Those that are scored."""
        return self.net.kinds

    @property
    def shape(self) -> Shape:
        """Of the model that the net was made for."""
        last = self.net.reader(self.taps[-1])
        return Shape(last.span.stop, last.width, last.units)

    @torch.no_grad()
    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> Mapping[Unit, Tensor]:
        reader = self.net.reader(tap).to(state.device)
        pool = None if pool is None else pool.to(state.device)
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
        self.predicted, self.taps = predicted, predicted.taps
        self.seen: dict[int, Tensor] = {}

    def look(self, model: PreTrainedModel, batch: Batch) -> None:
        with torch.no_grad(), listen(model, self.taps, self.predicted.source, self.seen.__setitem__):
            logits_of(model, batch)

    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> Mapping[Unit, Tensor]:
        if tap not in self.seen:
            raise UserError("a dense-fed predictor must see the sample first: run `SparseRun.logits`")
        return self.predicted.at(tap, self.seen[tap], pool)
