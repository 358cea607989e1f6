"""Layers on the device whose projections read the inputs that stay alone, by |x| at each of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.executors.families import describe, norm_of
from shadow.executors.gpu.attention import attend, remember
from shadow.executors.gpu.cache import DeviceKeyValues
from shadow.executors.gpu.channels import pick, write_channels
from shadow.executors.gpu.decode import normed
from shadow.executors.gpu.weights import DeviceWeights, Norm, turn_over
from shadow.executors.planner import Planner
from shadow.models.kinds import find_sites
from shadow.models.sites import Site, SiteKey
from shadow.plans.stand_ins import Learnt, name_of


class Rows(NamedTuple):
    """A site that is pruned. weight: [U, N], a row of each input, of all readers side by side; factor:
    float32 [N], learnt, or None; base: float32 [N]; above: float32 [1], the threshold; least: so many stay at
    least; top: and no others."""

    weight: Tensor
    factor: Tensor | None
    base: Tensor
    above: Tensor
    least: int
    top: bool


class ChannelLayers:
    """Planned at the very input that each projection reads. kept: int32 [L, B] of each slot, how many
    channels of each row's last token stayed."""

    def __init__(self, model: PreTrainedModel, planner: Planner) -> None:
        if planner.constants:
            raise UserError(
                "executor=gathered puts nothing in the place of channels that it drops: use "
                "sparsity.stand_in=zero, or executor=masked"
            )
        self.readers: dict[SiteKey, Sequence[nn.Linear]] = {}
        self.rows: dict[SiteKey, Rows] = {}
        self.units: dict[str, int] = {}
        self.kept: dict[str, Tensor] = {}
        sizes, parts = describe(model)
        self.layers = sizes.layers
        self.norms = [
            (Norm(*norm_of(one.attention_norm)), Norm(*norm_of(one.neuron_norm))) for one in parts.layers
        ]
        for site in find_sites(model, ["channel"]):
            if site.layer == sizes.layers:  # the lm_head
                continue
            linears = [one for one in site.readers if isinstance(one, nn.Linear)]
            self.units[site.slot] = site.units
            self.readers[site.key] = linears
            if planner.policy.prunes(site.key):
                self.rows[site.key] = rows_of(site, linears, planner)

    def run(self, weights: DeviceWeights, memory: DeviceKeyValues, index: int, h: Tensor) -> None:
        """Add to h, float32 [B, E], what this layer writes. All heads attend."""
        before, behind = self.norms[index]
        sizes, heads = weights.sizes, memory.choices["head"].of_layer(index)
        if index == 0:
            self.begin(len(h), h.device)
        query, key, value = self.read((index, "qkv"), normed(weights, before, h))
        keys, values = memory.keys[index], memory.values[index]
        remember(key, value, keys, values, memory.turns, memory.start, memory.end)
        context = attend(
            query, keys, values, memory.turns, heads.keep, memory.start, memory.end, sizes.scaling
        )
        self.write((index, "o"), context, h)
        said = self.read((index, "gate_up"), normed(weights, behind, h))
        self.write((index, "down"), F.silu(said[0]) * said[1] if sizes.gated else said[0].relu(), h)

    def begin(self, rows: int, device: torch.device) -> None:
        """Of sites that are not pruned everything stays."""
        if not self.kept or self.kept["qkv"].shape[1] != rows:
            for slot, units in self.units.items():
                whole = (self.layers, rows)
                self.kept[slot] = torch.full(whole, units, dtype=torch.int32, device=device)

    def picked(self, key: SiteKey, x: Tensor) -> Tensor:
        (layer, slot), rows = key, self.rows[key]
        return pick(x, rows.above, rows.least, rows.top, self.kept[slot][layer])

    def read(self, key: SiteKey, x: Tensor) -> list[Tensor]:
        """x: [B, U] -> what each reader says, [B, N], of x's dtype."""
        readers = self.readers[key]
        if key not in self.rows:
            return [F.linear(x, one.weight, one.bias) for one in readers]
        rows = self.rows[key]
        said = x.new_empty(len(x), rows.weight.shape[1])
        write_channels(self.picked(key, x), rows.weight, rows.factor, rows.base, None, said)
        return [part.contiguous() for part in said.split([one.out_features for one in readers], 1)]

    def write(self, key: SiteKey, x: Tensor, h: Tensor) -> None:
        """h: float32 [B, E] gains what the one reader says of x."""
        if key not in self.rows:
            (reader,) = self.readers[key]
            h += F.linear(x, reader.weight, reader.bias)
            return
        rows = self.rows[key]
        write_channels(self.picked(key, x), rows.weight, rows.factor, rows.base, h, h)

    def add_kept(self, totals: dict[str, Tensor], real: Tensor) -> None:
        """totals: int64 [L] of each slot gain what the last token's real rows, bool [B], have kept."""
        for slot, kept in self.kept.items():
            totals[slot] += (kept * real).sum(1)


@torch.no_grad()
def rows_of(site: Site, linears: Sequence[nn.Linear], planner: Planner) -> Rows:
    weight = turn_over(*linears)
    base = torch.cat([bias_of(one) for one in linears])
    factor = None
    if isinstance(planner.stand_in, Learnt):
        names = [name_of(site, reader) for reader in range(len(linears))]
        factor = torch.cat([planner.stand_in.factors[name] for name in names]).to(base)
        base = factor * base + torch.cat([planner.stand_in.addends[name] for name in names]).to(base)
    policy, top = planner.policy, planner.policy.scope == "layer"
    least = min(policy.min_units, site.units)
    if top:
        least = site.units - policy.gone(site.units, policy.level_of(site.key))
    above = torch.zeros(1) if top else torch.tensor([policy.threshold_of(site.key)])
    return Rows(weight, factor, base, above.to(base), least, top)


def bias_of(linear: nn.Linear) -> Tensor:
    zeros = torch.zeros(linear.out_features, device=linear.weight.device)
    return zeros if linear.bias is None else linear.bias.detach().float()
