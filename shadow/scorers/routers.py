"""Routers: small nets that say of each token how much it needs a layer's attention and its FFN."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shadow.data.batches import pooled
from shadow.models.sites import Kind, Site, SiteKey
from shadow.signals import Signal


class Routers(nn.Module):
    """A scorer of blocks: of each layer a net from its input state, without its mean and size, to the scores
    of its attention and its FFN. It is asked before anything of the layer is read."""

    kinds: frozenset[Kind] = frozenset({"block"})

    def __init__(self, sites: Sequence[Site], width: int, hidden: int) -> None:
        """sites: blocks, both of each layer; width: E; hidden: of the only layer between."""
        super().__init__()
        slots: dict[int, list[str]] = {}
        for site in sites:
            slots.setdefault(site.layer, []).append(site.slot)
        self.width, self.hidden, self.slots = width, hidden, slots
        self.nets = nn.ModuleDict(
            {
                str(layer): nn.Sequential(
                    nn.LayerNorm(width, elementwise_affine=False),
                    nn.Linear(width, hidden),
                    nn.GELU(),
                    nn.Linear(hidden, len(names)),
                )
                for layer, names in slots.items()
            }
        )

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        """Of all its layers: those whose thresholds are learnt are not pruned yet."""
        return [Signal(layer, "layer_input") for layer in self.slots]

    @torch.no_grad()
    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        return {key: pooled(said, pool) for key, said in self.said_of(signal.layer, x).items()}

    def said_of(self, layer: int, x: Tensor) -> dict[SiteKey, Tensor]:
        """x: [B, T, E], the layer's input -> [B, T, 1] of each of its blocks."""
        said = self.nets[str(layer)].to(x.device)(x.float())
        return {(layer, slot): said[..., [at]] for at, slot in enumerate(self.slots[layer])}

    def weights_at(self, site: Site) -> float:
        """Of a layer's net, shared out among its blocks."""
        numbers = sum(values.numel() for values in self.nets[str(site.layer)].parameters())
        return numbers / len(self.slots[site.layer])
