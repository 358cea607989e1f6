"""How well predicted scores rank the units of each layer."""

import torch
from torch import Tensor

from shadow.sparsity import kept


def ranks(scores: Tensor) -> Tensor:
    """[..., U] -> int64 [..., U]: 0 for the lowest score. One sort; the metrics below need no other."""
    if scores.device.type == "cpu":
        order = torch.from_numpy(scores.detach().numpy().argsort(-1))  # by vectors: three times as fast
    else:
        order = scores.argsort(-1)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def spearman(predicted: Tensor, target: Tensor) -> Tensor:
    """Ranks [N, L, U] x 2 -> [L]: their correlation over the units of a layer, averaged over rows."""
    n = target.shape[-1]
    distance = (predicted - target).float().square().sum(-1)
    return 1 - 6 * distance.mean(0) / (n * (n * n - 1))


def stay(predicted: Tensor, level: float) -> Tensor:
    """Ranks [..., U] -> bool [..., U]: the units that a plan of this level keeps."""
    units = predicted.shape[-1]
    return predicted >= units - kept(units, level)


def recall(predicted: Tensor, target: Tensor, level: float) -> Tensor:
    """Ranks [N, L, U] x 2 -> [L]: share of the units to keep that are kept, averaged over rows."""
    right = stay(predicted, level) & stay(target, level)
    return right.float().mean((0, 2)) * target.shape[-1] / kept(target.shape[-1], level)


def mass(predicted: Tensor, scores: Tensor, level: float) -> Tensor:
    """Ranks and scores, [N, L, U] each -> [L]: share of a layer's scores in its kept units, averaged.

    1 where a layer's scores are all 0, for then nothing is lost.
    """
    whole = scores.sum(-1)
    share = (scores * stay(predicted, level)).sum(-1) / whole.where(whole > 0, 1)
    return share.where(whole > 0, 1.0).mean(0)
