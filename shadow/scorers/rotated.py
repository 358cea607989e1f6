"""LaRoSA: inputs in a basis of their own, in which more of them are small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import pooled
from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, Point, Site, SiteKey
from shadow.plans.facts import Traits
from shadow.plans.stand_ins import Zero
from shadow.scorers.calibrated import watch
from shadow.scorers.recipe import Ingredients, Needs, TrainingFree
from shadow.scorers.scaled import seen_at
from shadow.signals import Signal

ROTATED = ("qkv", "gate_up")  # slots that read the stream
RIDGE = 0.01  # of the mean square, added to every direction


class RotatedInput(TrainingFree):
    """LaRoSA (arXiv 2507.01299): of what reads the stream, numbers of Q'x by their size, W Q being at hand.

    Q has the eigenvectors of the calibration's x x', for attention and for the FFN of each layer. What o and
    down read is taken as it is. Q'x costs a square matrix a site, which is counted: the authors' residual
    adapters are as large. They keep a share of each token's own, sparsity=layer, of o and down 1.5 times as
    much as of the others; sparsity.budgets=block finds shares here.
    """

    kinds: frozenset[Kind] = frozenset({"channel"})
    points: frozenset[Point] = frozenset({"site"})

    def traits(self, criterion: str, layers: int) -> Traits:
        return super().traits(criterion, layers)._replace(stands_in=Unrotated.__name__)

    def needs(self, criterion: str) -> Needs:
        return Needs(sample=True)

    def build(self, model: PreTrainedModel, have: Ingredients) -> "Rotations":
        sites = [site for site in find_sites(model, ["channel"]) if site.slot in ROTATED]
        squares: dict[SiteKey, Tensor] = {}

        def add(signal: Signal, x: Tensor) -> None:
            key = signal.layer, signal.slot
            x = x.double()
            squares[key] = squares.get(key, 0.0) + x.T @ x

        watch(model, [seen_at(site, "site") for site in sites], have.sample(), add)
        return Rotations({key: basis_of(square) for key, square in squares.items()})


def basis_of(square: Tensor) -> Tensor:
    """-> [U, U]: the eigenvectors of a sum of x x', after a little has been added in every direction."""
    ridge = (
        RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
    )
    return torch.linalg.eigh(square + ridge).eigenvectors.float()


@dataclass(frozen=True)
class Rotations:
    """bases: [U, U] of the sites that are rotated. Units there are directions and no inputs."""

    bases: Mapping[SiteKey, Tensor]
    kinds: frozenset[Kind] = frozenset({"channel"})

    @property
    def stand_in(self) -> "Unrotated":
        return Unrotated(self.bases)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [seen_at(site, "site") for site in sites if site.kind == "channel"]

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        key, x = (signal.layer, signal.slot), x.float()
        if key in self.bases:
            x = x @ self.bases[key].to(x.device)
        return {key: pooled(x.abs(), pool)}

    def weights_at(self, site: Site) -> float:
        return self.bases[site.key].numel() if site.key in self.bases else 0


@dataclass(frozen=True)
class Unrotated:
    """Of what stays in the rotated basis the input that the model's own weights read."""

    bases: Mapping[SiteKey, Tensor]

    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        if site.key not in self.bases:
            return Zero()(site, x, keep)
        basis = self.bases[site.key].to(x)
        return ((x[..., 0] @ basis * keep) @ basis.T)[..., None]
