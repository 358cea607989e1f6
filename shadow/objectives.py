"""What a predictor is trained towards: large scores, or which units are active."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from shadow.rank_metrics import ranks, stay


class Objective(Protocol):
    """What a net says is compared with `target`; where it says the same of all rows, `start` is best."""

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

    levels: active are the units that a plan of the sample's own scores keeps, as a mean over these levels; or
    None for those whose score is above 0, which is meant for ReLU. Active units weigh 1, and the others the
    share of active ones + 0.005, as in the code of DejaVu (Liu et al. 2023, arXiv 2310.17157).
    """

    def __init__(self, levels: Sequence[float] | None) -> None:
        self.levels = levels

    def target(self, scores: Tensor, mean: Tensor) -> Tensor:
        if self.levels is None:
            return (scores > 0).float()
        order = ranks(scores)
        return torch.stack([stay(order, level).float() for level in self.levels]).mean(0)

    def start(self, mean: Tensor) -> Tensor:
        return mean.clamp(1e-3, 1 - 1e-3).logit()

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        share = target.mean() + 0.005
        return binary_cross_entropy_with_logits(said, target, weight=target * (1 - share) + share)
