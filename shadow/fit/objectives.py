"""What a predictor is trained towards: large scores, their order, or which units stay."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, softplus

from shadow.errors import UserError
from shadow.plans.rules import keep_top, kept


class Objective(Protocol):
    """What a net says is compared with `target`; said of all rows alike, `start` is best, or near it.

    alone: whether a layer's part of the loss needs nothing of other layers.
    """

    alone: bool

    def target(self, scores: Tensor, mean: Tensor) -> Tensor:
        """scores: [N, S, U], at least 0; mean: [S, 1], of a layer's scores -> [N, S, U]."""
        ...

    def start(self, mean: Tensor) -> Tensor:
        """The mean of targets over rows, [S, U] -> [S, U]."""
        ...

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        """[N, S, U] x 2 -> their mean loss."""
        ...


class LogSquares:
    """Least squares on log(score + floor * mean).

    The floor keeps units that hardly fire, and tokens at which a layer says little, from ruling the loss.
    """

    alone = True

    def __init__(self, floor: float) -> None:
        self.floor = floor

    def target(self, scores: Tensor, mean: Tensor) -> Tensor:
        return (scores + (self.floor * mean + 1e-30)).log_()

    def start(self, mean: Tensor) -> Tensor:
        return mean

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        return mse_loss(said, target)


class Active:
    """Cross-entropy on whether a unit is active; what is said are logits.

    levels: active are the units that a plan of the sample's own scores keeps, as a mean over these levels,
    but for those that score 0; or None for all that score above 0, meant for neurons behind a ReLU.
    Active units weigh 1, and the others the layer's share of active ones + 0.005, as in the code of DejaVu
    (Liu et al. 2023, arXiv 2310.17157) for neurons.
    """

    alone = True

    def __init__(self, levels: Sequence[float] | None) -> None:
        self.levels = levels

    def target(self, scores: Tensor, mean: Tensor) -> Tensor:
        if self.levels is None:
            return (scores > 0).float()
        units = scores.shape[-1]
        plans = torch.stack([keep_top(scores, kept(units, level)) for level in self.levels])
        return (plans & (scores > 0)).float().mean(0)  # which of the silent ones a plan keeps says nothing

    def start(self, mean: Tensor) -> Tensor:
        if self.levels is None and bool((mean == 1).all()):
            raise UserError(
                "predictor.active.neuron=positive tells apart what a ReLU silences, and by this model and "
                "criterion all neurons score above 0 at all rows: give levels, such as [0.5]"
            )
        return mean.clamp(1e-3, 1 - 1e-3).logit()

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        share = target.mean((0, 2), keepdim=True) + 0.005
        return binary_cross_entropy_with_logits(said, target, weight=target * (1 - share) + share)


class Listwise(LogSquares):
    """ListNet, top one (Cao et al. 2007): -sum_u p_u log q_u of a layer, the mean over rows and layers.

    p: the softmax of the targets, which is score + floor * mean as a share of its sum in the layer; q: the
    softmax of what is said. Least where that is the target plus any constant, so squares may start it.
    """

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        return -(target.softmax(-1) * said.log_softmax(-1)).sum(-1).mean()


class Pairwise(LogSquares):
    """RankNet (Burges et al. 2005): |t_u - t_v| log(1 + exp(-(s_u - s_v))) of pairs in a layer with targets
    t_u > t_v, of which s_u and s_v are said; the mean over pairs.

    The weight is what a wrong order costs: where two log scores are near, their order is noise, and no plan
    is much the worse for it. Row n of a batch pairs each unit with the one k places on, around the layer, k =
    1 + floor(n * 0.618 * (U - 1)) mod (U - 1): other pairs in other rows, the same ones for the same batch.
    """

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        other = partners(len(said), said.shape[-1], said.device)[:, None].expand_as(said)
        gap = target - target.gather(-1, other)
        lead = gap.sign() * (said - said.gather(-1, other))
        return (gap.abs() * softplus(-lead)).mean()


def partners(rows: int, units: int, device: torch.device) -> Tensor:
    """-> int64 [N, U]: the unit that each one is paired with, in each row of a batch."""
    row, unit = torch.arange(rows, device=device), torch.arange(units, device=device)
    others = max(1, units - 1)
    # the golden section spreads the distances of successive rows evenly
    places = 1 + (row * 0.618 * others).long() % others
    return (unit + places[:, None]) % units


class Cutoff(LogSquares):
    """What errors of plans cost: |t_u - b| log(1 + exp(-y_u (s_u - c))), the mean over units and levels.

    t_u is a unit's target and s_u what is said. b is the border of the plan of the targets at a level, midway
    between the least of those that stay and the largest of those that go; c is the same of what is said, its
    distance from their mean held fixed. y_u is 1 for t_u > b, else -1. So a unit weighs by how far it is from
    the border: by what a mistake about it costs. Where all units of a kind stay there is no loss.
    """

    def __init__(self, floor: float, levels: Sequence[float]) -> None:
        super().__init__(floor)
        self.levels = levels

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        # with the border alone held fixed, all units would rise together, and it with them, without end
        said = said - said.mean(-1, keepdim=True)
        ordered, guessed = target.sort(-1).values, said.detach().sort(-1).values
        losses = [said.sum() * 0]
        for level in self.levels:
            goes = target.shape[-1] - kept(target.shape[-1], level)
            if goes:
                above = target - border(ordered, goes)
                margin = above.sign() * (said - border(guessed, goes))
                losses.append((above.abs() * softplus(-margin)).mean())
        return torch.stack(losses).sum() / len(self.levels)


def border(ordered: Tensor, goes: int) -> Tensor:
    """ordered: [..., U], rising -> [..., 1]: midway between the last of those that go and the next."""
    return ordered[..., goes - 1 : goes + 1].mean(-1, keepdim=True)
