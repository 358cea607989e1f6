"""The ground truth of criteria: by how much the loss really changes when a unit is removed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.criteria.one_pass import row_losses
from shadow.data.batches import Batch, Loss, logits_of
from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.models.sites import Site
from shadow.signals import hook_sites
from shadow.terminal.bars import counted


@dataclass(frozen=True)
class Exact:
    """`removal` at one site of one batch; change: [B, U]."""

    change: Tensor

    def tokens(self) -> Tensor:
        raise UserError(
            "criterion=removal removes a unit from a whole window: use sparsity.decided_at=prompt or sequence"
        )

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        return self.tokens()

    def window(self, inside: Tensor) -> Tensor:
        """-> [B, U]; the unit was removed at all positions, whatever is inside."""
        return self.change


@torch.no_grad()
def removal(
    model: PreTrainedModel,
    batch: Batch,
    units: Mapping[Site, Tensor],
    loss: Loss = "answer",
    rows_at_once: int = 8,
) -> dict[Site, Tensor]:
    """units: numbers [n] of units at each site -> float32 [B, n]: each row's loss without one, less with it.

    In nats, each row's mean over its own loss tokens; positive where the unit helps. The unit is 0 at every
    position. Costs a forward of the batch for each unit.
    """
    dense = _losses(model, batch, loss)
    found = {}
    for site, chosen in counted(units.items(), "removal", "sites"):
        # a row of a pass for each pair of a unit and a row of the batch
        pairs = torch.cartesian_prod(chosen.cpu(), torch.arange(len(batch.ids)))
        losses = []
        for some in pairs.split(rows_at_once):
            with hook_sites(model, find_sites(model), _dropping(site, some[:, 0])):
                losses.append(_losses(model, Batch(*(values[some[:, 1]] for values in batch)), loss))
        found[site] = torch.cat(losses).view(len(chosen), -1).T - dense[:, None]
    return found


def _dropping(site: Site, units: Tensor) -> Callable[[Site, Tensor], Tensor | None]:
    """units: [B], the one that each row goes without."""

    def drop(at: Site, x: Tensor) -> Tensor | None:
        if (at.layer, at.kind) != (site.layer, site.kind):
            return None
        x = x.clone()
        x[torch.arange(len(units)), :, units] = 0
        return x

    return drop


def _losses(model: PreTrainedModel, batch: Batch, loss: Loss) -> Tensor:
    return row_losses(logits_of(model, batch), batch.targets(loss)).float().cpu()
