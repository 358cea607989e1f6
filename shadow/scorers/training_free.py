"""Scorers that nobody trains, made from the model's own weights or the prompt's own pass."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from shadow.criteria import BESIDE_MEANS, CONTEXTUAL, Seen, needs_gradient
from shadow.criteria.one_pass import score
from shadow.criteria.statistics import Shown
from shadow.data.batches import Batch
from shadow.errors import UserError
from shadow.models.sites import NeuronPath, Site, find_neuron_paths, values_of
from shadow.plans.policy import Unit
from shadow.traces.collector import mean_of


class PromptActivation:
    """A criterion over the prompt alone, from a dense pass over it: what a prompt tells without training.

    One plan for a row. With criterion=griffin this is GRIFFIN (Dong et al. 2024, arXiv 2404.01365), for heads
    too; with a criterion of gradients its sister, whose loss is that of the prompt's own next tokens.
    """

    taps = (0,)

    def __init__(self, criterion: str, means: Mapping[Unit, Tensor] | None = None) -> None:
        """means: [U, D] of every site's activation over the calibration, for `l2_deviation`."""
        allowed = [*CONTEXTUAL, *BESIDE_MEANS]
        if criterion not in allowed:
            raise UserError(f"the criterion of a prompt must be in {allowed}, got {criterion!r}")
        self.criterion, self.means = criterion, means
        self.scores: dict[Unit, Tensor] = {}
        self._prompt = torch.zeros(0)  # [B], of the batch that was looked at

    def look(self, model: PreTrainedModel, batch: Batch) -> None:
        least = 2 if needs_gradient(self.criterion) else 1  # a loss needs a next token
        if int(batch.prompt.min()) < least:
            raise UserError(
                f"predictor=prompt_activation with criterion={self.criterion} needs at least {least} "
                f"token{'s' * (least > 1)} in each prompt, got a prompt of {int(batch.prompt.min())}"
            )
        prompts = batch.prompts()
        inside = prompts.real()

        def receive(name: str, site: Site, seen: Seen | Shown) -> None:
            assert not isinstance(seen, Shown)
            self.scores[site.layer, site.kind] = seen.window(inside)

        score(model, prompts, [self.criterion], receive, means=self.means)
        self._prompt = batch.prompt

    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> dict[Unit, Tensor]:
        if not self.scores:
            raise UserError(
                "prompt_activation must see the prompt first: run batches through `SparseRun.logits`"
            )
        if pool is None or not torch.equal(pool.sum(1), self._prompt):
            raise UserError("prompt_activation knows the prompt alone: use sparsity.decided_at=prompt")
        return self.scores


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


def copies_of(path: NeuronPath, rank: int) -> list[LowRank]:
    """Of the gate and of what else is written, one each, also where one projection writes both."""
    found = []
    for writer in path.writers:
        weights = values_of(writer).split(path.neurons)
        biases = [None] * len(weights) if writer.bias is None else writer.bias.split(path.neurons)
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

    def __init__(
        self,
        model: PreTrainedModel,
        rank: int,
        heads: Mapping[int, Tensor],
        means: Mapping[int, Tensor] | None = None,
    ) -> None:
        """heads: [U] of each layer; means: [F] of each layer, which stand in dropped neurons' places."""
        paths = find_neuron_paths(model)
        self.taps = range(1, len(paths))
        self.heads, self.means = dict(heads), means
        self.paths: dict[int, NeuronPath] = {layer: paths[layer] for layer in self.taps}
        self.copies = {layer: copies_of(path, rank) for layer, path in self.paths.items()}

    @property
    def parameters(self) -> int:
        """Numbers of all factors; norms and biases are the model's own."""
        return sum(c.down.numel() + c.up.numel() for copies in self.copies.values() for c in copies)

    @torch.no_grad()
    def at(self, tap: int, state: Tensor, pool: Tensor | None) -> dict[Unit, Tensor]:
        path = self.paths[tap]
        x = path.norm(state).float()
        pool = None if pool is None else pool.to(state.device)
        first, *others = (copy(x) for copy in self.copies[tap])
        neurons = path.nonlinearity(first)
        for other in others:
            neurons = neurons * other
        if self.means is not None:
            neurons = neurons - self.means[tap].to(neurons)
        neurons = neurons.abs()
        return {
            (tap, "head"): self.heads[tap],
            (tap, "neuron"): neurons if pool is None else mean_of(neurons, pool),
        }
