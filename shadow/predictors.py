"""Who says what matters: the trained net and the trivial scorers."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.batches import Batch
from shadow.collector import last_of, mean_of
from shadow.criteria import CRITERIA
from shadow.errors import UserError
from shadow.ridge import Fit
from shadow.scores import score
from shadow.sites import KINDS, Kind, Site
from shadow.sparsity import Unit

Pooling = Literal["scores", "mean", "last"]


class Scorer(Protocol):
    """Scores for a prompt; higher stays longer.

    taps: the layers whose input state is read; () for a scorer that reads nothing, and is asked once.
    """

    @property
    def taps(self) -> Sequence[int]: ...

    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> dict[Unit, Tensor]:
        """state: [B, T, E] at this tap -> scores of every unit up to the next tap: [B, T, U] per token, or with
        pool: bool [B, T], the positions that decide together, [B, U]."""
        ...


@runtime_checkable
class Looks(Protocol):
    """A scorer that must see the whole sample before the sparse pass: an oracle."""

    def look(self, model: PreTrainedModel, batch: Batch) -> None: ...


class Fixed:
    """The same scores for every prompt: the mean over calibration, or random ones."""

    taps = ()

    def __init__(self, scores: Mapping[Unit, Tensor]) -> None:
        self.scores = dict(scores)

    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> dict[Unit, Tensor]:
        return self.scores


def random_scores(sites: Sequence[Site], seed: int) -> dict[Unit, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {(site.layer, site.kind): torch.rand(site.units, generator=draw) for site in sites}


class Oracle:
    """The sample's own criterion, from a dense pass (with its gradients) over the sample: a bound, not a method."""

    taps = (0,)

    def __init__(self, criterion: str) -> None:
        self.criterion = criterion
        self.per_token: dict[Unit, Tensor] = {}

    def look(self, model: PreTrainedModel, batch: Batch) -> None:
        def receive(name: str, site: Site, per_token: Tensor) -> None:
            self.per_token[site.layer, site.kind] = per_token

        score(model, batch, [self.criterion], receive)

    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> dict[Unit, Tensor]:
        if not self.per_token:
            raise UserError("the oracle must see the sample first: run batches through `SparseRun.logits`")
        if pool is None:
            return self.per_token
        return {unit: CRITERIA[self.criterion].reduce(found, pool) for unit, found in self.per_token.items()}


class TapNet(nn.Module):
    """From the state at each tap to log scores of the units up to the next tap.

    score = static mean + low-rank map of the standardised state: what is learnt is only how this prompt deviates from
    the calibration's mean, through `rank` numbers. One tap is ShadowLLM's unified predictor (arXiv 2406.16635); a tap
    in every layer is DejaVu's layerwise one (arXiv 2310.17157) reading the layer's own input.
    """

    def __init__(
        self, taps: Sequence[int], layers: int, width: int, units: Mapping[Kind, int], rank: int
    ) -> None:
        """taps: rising layer numbers; layers: of the whole model; width: E; units: of each kind in a layer."""
        super().__init__()
        self.taps = list(taps)
        self.layers = layers
        self.spans = {tap: range(tap, end) for tap, end in zip(self.taps, [*self.taps[1:], layers])}
        self.units = dict(units)
        self.rank = rank = min(rank, width)  # a wider detour would add nothing
        self.center = nn.Buffer(torch.zeros(len(self.taps), width))
        self.scale = nn.Buffer(torch.ones(len(self.taps), width))
        self.static = nn.ParameterDict(
            {
                kind: nn.Parameter(torch.zeros(self.n_scored, units[kind]), requires_grad=False)
                for kind in KINDS
            }
        )
        self.down = nn.ModuleList(nn.Linear(width, rank) for _ in self.taps)
        self.up = nn.ModuleList(
            nn.ModuleDict({kind: nn.Linear(2 * rank, len(span) * units[kind], bias=False) for kind in KINDS})
            for span in self.spans.values()
        )
        for linear in self.up.modules():
            if isinstance(linear, nn.Linear):
                nn.init.zeros_(linear.weight)  # say what the static mean says

    @torch.no_grad()
    def set_linear(self, index: int, fit: Fit) -> None:
        """Make the tap number `index` say what this linear map says."""
        self.center[index], self.scale[index] = fit.center, fit.scale
        self.down[index].weight.copy_(fit.down)  # pyright: ignore
        self.down[index].bias.zero_()  # pyright: ignore
        first, span = self.taps[index] - self.taps[0], self.spans[self.taps[index]]
        for kind in KINDS:
            self.static[kind][first : first + len(span)] = fit.mean[kind]
            weight = self.up[index][kind].weight  # pyright: ignore
            weight.zero_()
            weight[:, : self.rank] = fit.up[kind]

    @property
    def n_scored(self) -> int:
        return self.layers - self.taps[0]

    def at(self, tap: int, state: Tensor) -> dict[Kind, Tensor]:
        """state: [..., E] -> log scores [..., S, U] of the S layers from this tap up to the next."""
        index = self.taps.index(tap)
        span = self.spans[tap]
        hidden = self.down[index]((state.float() - self.center[index]) / self.scale[index])
        features = torch.cat([hidden, nn.functional.gelu(hidden)], -1)  # a linear path beside the curved one
        first = tap - self.taps[0]
        found: dict[Kind, Tensor] = {}
        for kind in KINDS:
            deviation = self.up[index][kind](features)  # pyright: ignore
            static = self.static[kind][first : first + len(span)]
            found[kind] = static + deviation.unflatten(-1, (len(span), self.units[kind]))
        return found

    def forward(self, states: Tensor) -> dict[Kind, Tensor]:
        """states: [N, taps, E] -> log scores [N, S, U] of all scored layers."""
        parts = [self.at(tap, states[:, index]) for index, tap in enumerate(self.taps)]
        return {kind: torch.cat([part[kind] for part in parts], 1) for kind in KINDS}


class Predicted:
    """A trained net as a scorer.

    pooling: how positions that decide together are joined: the `scores` of each are averaged, or their states are
    first (`mean`), or only the `last` one is read.
    """

    def __init__(self, net: TapNet, pooling: Pooling) -> None:
        self.net = net
        self.pooling = pooling
        self.taps = net.taps

    @torch.no_grad()
    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> dict[Unit, Tensor]:
        net = self.net.to(state.device)
        if pool is None:
            found = net.at(tap, state)
        elif self.pooling == "scores":
            found = {kind: mean_of(values, pool) for kind, values in net.at(tap, state).items()}
        else:
            found = net.at(tap, {"mean": mean_of, "last": last_of}[self.pooling](state.float(), pool))
        return {
            (layer, kind): values[..., index, :]
            for kind, values in found.items()
            for index, layer in enumerate(net.spans[tap])
        }
