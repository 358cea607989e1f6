"""How well predicted scores rank the units of each layer."""

from typing import NamedTuple

import torch
from torch import Tensor

from shadow.plans.rules import kept


class Places(NamedTuple):
    """Of true scores, int64 [..., U]: the first and the last rank of those that score as much as a unit does.

    Neurons that a ReLU silences all score 0, and which of them a plan keeps is neither right nor wrong.
    """

    first: Tensor
    last: Tensor


def order_of(scores: Tensor) -> Tensor:
    """[..., U] -> int64 [..., U]: the units, the lowest score first."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.detach().numpy().argsort(-1))  # by vectors: three times as fast
    return scores.argsort(-1)


def ranks(scores: Tensor) -> Tensor:
    """[..., U] -> int64 [..., U]: 0 for the lowest score."""
    order = order_of(scores)
    return _back(order, _count(order))


def places(scores: Tensor) -> Places:
    """[..., U] -> where each unit stands, and those that score the same."""
    order = order_of(scores)
    count, ordered = _count(order), scores.gather(-1, order)
    rises = ordered[..., 1:] != ordered[..., :-1]
    if bool(rises.all()):
        rank = _back(order, count)
        return Places(rank, rank)
    edge = torch.ones_like(rises[..., :1])
    first = torch.where(torch.cat([edge, rises], -1), count, 0).cummax(-1).values
    ends = torch.where(torch.cat([rises, edge], -1), count, count.shape[-1])
    last = ends.flip(-1).cummin(-1).values.flip(-1)
    return Places(_back(order, first), _back(order, last))


def _count(order: Tensor) -> Tensor:
    return torch.arange(order.shape[-1], device=order.device).expand_as(order)


def _back(order: Tensor, values: Tensor) -> Tensor:
    """Of units in this order, [..., U] -> of units as they were."""
    return torch.empty_like(order).scatter_(-1, order, values)


def spearman(predicted: Tensor, target: Places) -> Tensor:
    """Ranks and places, [N, L, U] -> [L]: their correlation over the units of a layer, averaged over rows.

    Units of equal score share their mean rank; 0 where all are equal.
    """
    n = predicted.shape[-1]
    distance = (predicted - (target.first + target.last) / 2).square().sum(-1)
    whole = n * (n * n - 1) / 12  # squares about the mean, where no two are equal
    alike = target.last - target.first + 1
    tied = whole - (alike * alike - 1).sum(-1) / 12
    found = (whole + tied - distance) / (2 * (whole * tied).sqrt())
    return found.where(tied > 0, 0.0).mean(0)


def stay(predicted: Tensor, level: float) -> Tensor:
    """Ranks [..., U] -> bool [..., U]: the units that a plan of this level keeps."""
    units = predicted.shape[-1]
    return predicted >= units - kept(units, level)


def recall(predicted: Tensor, target: Places, level: float) -> Tensor:
    """Ranks and places, [N, L, U] -> [L]: share of the units to keep that are kept, averaged over rows.

    Of units that score the same at the border any may be kept, as many as there is room for.
    """
    chosen, n = stay(predicted, level), kept(predicted.shape[-1], level)
    sure, perhaps = stay(target.first, level), stay(target.last, level)
    others = (chosen & perhaps & ~sure).sum(-1).minimum(n - sure.sum(-1))
    return ((chosen & sure).sum(-1) + others).float().mean(0) / n


def mass(predicted: Tensor, scores: Tensor, level: float) -> Tensor:
    """Ranks and scores, [N, L, U] each -> [L]: share of a layer's scores in its kept units, averaged.

    1 where a layer's scores are all 0, for then nothing is lost.
    """
    whole = scores.sum(-1)
    share = (scores * stay(predicted, level)).sum(-1) / whole.where(whole > 0, 1)
    return share.where(whole > 0, 1.0).mean(0)
