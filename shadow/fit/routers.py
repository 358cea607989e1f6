"""Routers of blocks: fitted so that a model which skips blocks says what the dense one does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel, get_scheduler

from shadow.data.batches import Batch, logits_of
from shadow.errors import UserError, require_number, require_whole
from shadow.fit.stand_ins import divergence
from shadow.models.kinds import find_sites
from shadow.models.sites import Site, SiteKey
from shadow.plans.facts import Facts, Traits
from shadow.scorers.recipe import Ingredients, Needs, Schedule
from shadow.scorers.routers import Routers
from shadow.signals import Signal, hook_outputs, hook_signals


@dataclass(frozen=True)
class BlockRouter:
    """FTP (arXiv 2412.11494): a router says which tokens skip a layer's attention or FFN.

    As there, the model stays as it is, and routers learn through a gate, open or shut, whose gradient is that
    of a sigmoid, from how far the next token's distribution is from the dense model's. What differs, as far
    as the paper's account goes (its code was not read): the router reads the layer's input state, as D-LLM's
    does, where theirs reads four numbers of a token, its position, its attention score, that score's rank and
    the sparsity asked for, of which fused attention shows no score; attention and FFN are decided apart;
    gates shut for the share `level` of each batch, as thresholds will, so that no loss is needed for the
    share; there is no guiding loss and no genetic search: every layer loses the same, or what
    `sparsity.budgets` says. Keys and values are written for skipped tokens too.

    level: share of blocks that gates shut in the fit; dense_layers: those that stay whole.
    """

    level: float
    dense_layers: Sequence[int]
    hidden: int
    windows: int
    epochs: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        for name in ("hidden", "windows", "epochs", "batch_size"):
            require_whole(f"predictor.{name}", getattr(self, name), 1)
        require_number("predictor.level", self.level, "in [0, 1)", lambda level: 0 <= level < 1)
        require_number("predictor.lr", self.lr, "above 0", lambda rate: rate > 0)

    def traits(self, criterion: str, layers: int) -> Traits:
        return Traits(
            "router",
            Routers.kinds,
            frozenset({"layer_input"}),
            steps=layers,
            by_criterion=False,
        )

    def needs(self, criterion: str) -> Needs:
        return Needs(router=True)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        if self.level > 0 or facts.policy.level == 0:
            return None
        return (
            "predictor.level is the share of blocks that a router learns to skip, and must be above 0: leave "
            f"it out, and it is sparsity.level, got {self.level}"
        )

    def build(self, model: PreTrainedModel, have: Ingredients) -> Routers:
        blocks = [site for site in find_sites(model, ["block"]) if site.layer not in self.dense_layers]
        if not blocks:
            raise UserError("sparsity.dense_layers must leave a layer whose blocks can be skipped, got all")
        torch.manual_seed(have.seed)  # routers start alike whatever ran before
        routers = Routers(blocks, model.config.get_text_config().hidden_size, self.hidden)
        module = RouterModule(routers.to(model.device), Gated(model, blocks, self.level), self.lr)
        have.fitted(module, routers, Schedule(self.windows, self.epochs, self.batch_size))
        return routers.requires_grad_(False)


@dataclass(frozen=True)
class Gated:
    """A model whose blocks are shut by gates, the share `level` of each batch's tokens at each of them."""

    model: PreTrainedModel
    blocks: Sequence[Site]
    level: float

    def logits(self, routers: Routers, batch: Batch) -> Tensor:
        """-> [B, T, V], which gradients of what routers say flow back from."""
        gates: dict[SiteKey, Tensor] = {}
        real = batch.real()

        def decide(signal: Signal, x: Tensor) -> None:
            said: Mapping[SiteKey, Tensor] = routers.said_of(signal.layer, x)
            gates.update({key: self.gate(values, real) for key, values in said.items()})

        def skip(site: Site, reader: int, x: Tensor, y: Tensor) -> Tensor:
            return y * gates[site.key].to(y)

        with (
            hook_signals(self.model, routers.signals(self.blocks), decide),
            hook_outputs(self.model, self.blocks, skip),
        ):
            return logits_of(self.model, batch)

    def gate(self, said: Tensor, real: Tensor) -> Tensor:
        """said: [B, T, 1], real: bool [B, T] -> 1 where the block is run and 0 where not."""
        soft = torch.sigmoid(said - said[real].detach().quantile(self.level))
        return (soft > 0.5).float() + (soft - soft.detach())


class RouterModule(pl.LightningModule):
    """Descent on how far the next token of the model that skips is from the dense one's."""

    def __init__(self, routers: Routers, gated: Gated, lr: float) -> None:
        super().__init__()
        self.routers, self.gated, self.lr = routers, gated, lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with torch.no_grad():
            dense = logits_of(self.gated.model, batch)
        loss = divergence(dense, self.gated.logits(self.routers, batch), batch.real())
        self.log("train/kl", loss, prog_bar=True, batch_size=len(batch.ids), sync_dist=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.routers.parameters(), self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler("cosine", optimizer, 0, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
