"""Nets from early states to log scores: a tap's, and those of a whole model."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shadow.models.sites import Kind, SiteKey
from shadow.scorers.paper_nets import Attention, MLPReader, MLPShape


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

    def latent(self, state: Tensor) -> Tensor:
        """state: [..., E] -> the few numbers [..., R] that carry all that is said of it."""
        scaled = (state.float() - self.center) / self.scale
        latent = self.down(scaled)
        if self.bend is not None:
            first, *others = self.hidden
            hidden = nn.functional.gelu(first(scaled))
            for layer in others:
                hidden = hidden + nn.functional.gelu(layer(hidden))
            latent = latent + self.bend(hidden)
        return latent

    def forward(self, state: Tensor) -> dict[Kind, Tensor]:
        """state: [..., E] -> log scores [..., S, U] of the S layers of the span."""
        latent, found = self.latent(state), {}
        for kind in self.units:  # the mean as a bias: no second pass over what may be the largest tensor here
            scores = nn.functional.linear(
                latent, self.up[kind].get_parameter("weight"), self.static[kind].flatten()
            )
            found[kind] = scores.unflatten(-1, (len(self.span), self.units[kind]))
        return found

    def of_layers(self, state: Tensor) -> "LayerScores":
        """state: [..., E] -> log scores [..., U] of each layer of the span."""
        return LayerScores(self, self.latent(state))


class LayerScores(Mapping[SiteKey, Tensor]):
    """Log scores [..., U] of a tap's layers, each computed when it is asked for: of a whole model they are
    more than caches hold, and those of one layer are ranked while they are in them."""

    def __init__(self, tap: Tap, latent: Tensor) -> None:
        """latent: [..., R], what the tap's net makes of the states."""
        self.tap, self.latent = tap, latent
        self.rows = {  # [S, U, R]: names of modules and parameters are looked up once, not for every layer
            kind: up.get_parameter("weight").detach().unflatten(0, (len(tap.span), -1))
            for kind, up in tap.up.items()
        }
        self.static = {kind: static.detach() for kind, static in tap.static.items()}

    @torch.no_grad()
    def __getitem__(self, key: SiteKey) -> Tensor:
        layer, kind = key
        if layer not in self.tap.span or kind not in self.rows:
            raise KeyError(key)
        index = layer - self.tap.span.start
        return nn.functional.linear(self.latent, self.rows[kind][index], self.static[kind][index])

    def __iter__(self) -> Iterator[SiteKey]:
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
