"""Low-rank copies of FFN weights as scorers of neurons."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from shadow.data.batches import mean_of
from shadow.models.neuron_paths import NeuronPath, find_neuron_paths
from shadow.models.sites import KINDS, Kind, Site, SiteKey, values_of
from shadow.signals import Signal


class LowRank(NamedTuple):
    """A projection in two steps; float32. down: [R, E]; up: [U, R]; bias: [U], the projection's own."""

    down: Tensor
    up: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.down), self.up, self.bias)


def truncated(weight: Tensor, bias: Tensor | None, rank: int) -> LowRank:
    """U_r S_r V_r' of the singular value decomposition of a weight, the best approximation of this rank."""
    u, s, v = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    bias = None if bias is None else bias.detach().float()
    return LowRank(s[:rank, None] * v[:rank], u[:, :rank].contiguous(), bias)


def copies_of(writers: Sequence[nn.Linear], neurons: int, rank: int) -> list[LowRank]:
    """Of the gate and of what else is written, one each, also where one projection writes both."""
    found = []
    for writer in writers:
        weights = values_of(writer).split(neurons)
        biases = [None] * len(weights) if writer.bias is None else writer.bias.split(neurons)
        found += [truncated(weight, bias, rank) for weight, bias in zip(weights, biases)]
    return found


class LowRankCopy:
    """|activation| of neurons, or its distance from a mean, by low-rank copies of the projections that write
    them; heads by fixed scores.

    The truncated SVD of the gate's weights predicts the gate without training, and here that of the other
    projection's too, for both make the activation. Each layer is read at its input, before its attention:
    what attention adds in this layer is ignored. At full rank the scores are the activations that there would
    be if it added nothing. Of heads there is no such copy.
    """

    kinds: frozenset[Kind] = frozenset(KINDS)

    def __init__(
        self,
        model: PreTrainedModel,
        rank: int,
        heads: Mapping[int, Tensor],
        means: Mapping[int, Tensor] | None = None,
    ) -> None:
        """heads: [U] of each layer; means: [F] of each layer, which stand in dropped neurons' places."""
        paths = find_neuron_paths(model)
        copies = {
            layer: copies_of(paths[layer].writers, paths[layer].neurons, rank)
            for layer in range(1, len(paths))
        }
        self._hold(model, copies, heads, means)

    @classmethod
    def of_copies(
        cls,
        model: PreTrainedModel,
        copies: Mapping[int, list[LowRank]],
        heads: Mapping[int, Tensor],
        means: Mapping[int, Tensor] | None = None,
    ) -> Self:
        """Of copies that were made before, of every layer but the first."""
        found = cls.__new__(cls)
        found._hold(model, copies, heads, means)
        return found

    def _hold(
        self,
        model: PreTrainedModel,
        copies: Mapping[int, list[LowRank]],
        heads: Mapping[int, Tensor],
        means: Mapping[int, Tensor] | None,
    ) -> None:
        paths = find_neuron_paths(model)
        self.layers = range(1, len(paths))
        self.heads, self.neuron_means = dict(heads), means
        self.paths: dict[int, NeuronPath] = {layer: paths[layer] for layer in self.layers}
        self.copies = dict(copies)

    @property
    def weights(self) -> int:
        """Numbers of all factors; norms and biases are the model's own."""
        return sum(c.down.numel() + c.up.numel() for copies in self.copies.values() for c in copies)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [Signal(layer, "layer_input") for layer in self.layers]

    @torch.no_grad()
    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        layer, pool = signal.layer, None if pool is None else pool.to(x.device)
        path = self.paths[layer]
        x = path.norm(x).float()
        first, *others = (copy(x) for copy in self.copies[layer])
        neurons = path.nonlinearity(first)
        for other in others:
            neurons = neurons * other
        if self.neuron_means is not None:
            neurons = neurons - self.neuron_means[layer].to(neurons)
        neurons = neurons.abs()
        return {
            (layer, "head"): self.heads[layer],
            (layer, "neuron"): neurons if pool is None else mean_of(neurons, pool),
        }
