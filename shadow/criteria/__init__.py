"""What makes a unit matter: from what a site shows to an importance of each unit; higher matters more."""

from typing import Protocol

import torch
from torch import Tensor

from shadow.criteria.activation import DEVIATIONS, SUMMABLE, Summed
from shadow.criteria.statistics import STATISTICS
from shadow.criteria.weight import WEIGHT_FORMS
from shadow.errors import UserError
from shadow.models.sites import Site

RANDOM = "random"
REMOVAL = "removal"  # exact, and a forward for each unit: an oracle for small models, a judge for large ones
CONTEXTUAL = (*SUMMABLE, *WEIGHT_FORMS, RANDOM)  # each sample and each token has scores of its own
BESIDE_MEANS = (*DEVIATIONS,)  # so too, once the calibration's means are known
CRITERIA = (*CONTEXTUAL, *BESIDE_MEANS, *STATISTICS)


class Seen(Protocol):
    """What one criterion found at one site of one batch."""

    def tokens(self) -> Tensor:
        """-> float32 [B, T, U]: the score at each position by itself."""
        ...

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        """row, position: [M] -> float32 [M, U]: `tokens` there."""
        ...

    def window(self, inside: Tensor) -> Tensor:
        """inside: bool [B, T] -> float32 [B, U]: the score over these positions together."""
        ...


def needs_gradient(criterion: str) -> bool:
    if criterion in WEIGHT_FORMS:
        return True
    found = SUMMABLE.get(criterion) or STATISTICS.get(criterion)
    return found is not None and found.needs in ("gradient", "curvature")


def require(setting: str, names: list[str]) -> None:
    unknown = [name for name in names if name not in CRITERIA]
    if unknown or not names:
        raise UserError(f"{setting} must name some of {list(CRITERIA)}, got {names}")


def random_scores_of(site: Site) -> Tensor:
    """`random`: scores [U] drawn once for each site; what every criterion must beat."""
    draw = torch.Generator().manual_seed(2 * site.layer + (site.kind == "neuron"))
    return torch.rand(site.units, generator=draw, dtype=torch.float32)


def random_seen(site: Site, like: Tensor) -> Summed:
    """The same scores for every sample and token; like: the activation there, [B, T, U, D]."""
    return Summed(random_scores_of(site).to(like.device).expand(like.shape[:-1]), finish=_as_it_is)


def _as_it_is(total: Tensor) -> Tensor:
    return total
