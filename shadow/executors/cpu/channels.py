"""A model's weights, so that everything that belongs to an input of a projection is a row, and which stay."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.executors.cpu.grouped import InRows, OutRows, bits_for, empty_out, put_out
from shadow.executors.cpu.mapped import file_ranges, let_go
from shadow.executors.cpu.scoring import ABOVE, TOP
from shadow.executors.cpu.weights import (
    Norms,
    Weights,
    bias_of,
    in_groups_of,
    linear_of,
    norms,
    position_rows,
)
from shadow.executors.families import LayerParts, Sizes, describe
from shadow.executors.options import BITS, Storage
from shadow.models.kinds import find_sites
from shadow.models.sites import Site, SiteKey
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, name_of
from shadow.scorers.protocol import Scorer
from shadow.scorers.scaled import Scaled

SLOTS = ("qkv", "o", "gate_up", "down")
QKV, OUTPUT, GATE_UP, DOWN = range(4)


class ChannelWeights(NamedTuple):
    """Rows of inputs: qkv [L, E, (H + 2 G) * D], o [L, H * D, E], gate_up [L, E, 2 F] (gate first) or [L, E,
    F], down [L, F, E]; biases float32 [L, outputs]. embedding and vocabulary as in `Weights`."""

    sizes: Sizes
    qkv: OutRows
    o: OutRows
    gate_up: OutRows
    down: OutRows
    qkv_bias: np.ndarray
    o_bias: np.ndarray
    gate_up_bias: np.ndarray
    down_bias: np.ndarray
    embedding: InRows
    vocabulary: InRows
    vocabulary_bias: np.ndarray
    positions: np.ndarray
    attention_norm: Norms
    neuron_norm: Norms
    last_norm: Norms


class Above(NamedTuple):
    """What stays, by |x|, or |x| times a factor of each input.

    way: int64 [L, 4], of each of `SLOTS`: 0 (all), TOP or ABOVE; keep: int64 [L, 4], channels that stay, or
    for ABOVE at least; above: float32 [L, 4]; factor: float32 [L, 4, most inputs], or [L, 4, 0]."""

    way: np.ndarray
    keep: np.ndarray
    above: np.ndarray
    factor: np.ndarray


class Written(NamedTuple):
    """What becomes of a sum of rows: it is multiplied, and then added to. float32 [L, outputs] each."""

    qkv_factor: np.ndarray
    qkv_bias: np.ndarray
    o_factor: np.ndarray
    o_bias: np.ndarray
    gate_up_factor: np.ndarray
    gate_up_bias: np.ndarray
    down_factor: np.ndarray
    down_bias: np.ndarray


def written_of(weights: ChannelWeights, sites: Sequence[Site], stand_in: Learnt | None) -> Written:
    """Biases, and behind these sites what was learnt: f * (sum + bias) + a."""
    biases = {slot: getattr(weights, f"{slot}_bias").copy() for slot in SLOTS}
    factors = {slot: np.ones_like(bias) for slot, bias in biases.items()}
    for site in sites:
        assert stand_in is not None
        names = [name_of(site, reader) for reader in range(len(site.readers))]
        factor = torch.cat([stand_in.factors[name] for name in names]).detach().float().numpy()
        addend = torch.cat([stand_in.addends[name] for name in names]).detach().float().numpy()
        factors[site.slot][site.layer] = factor
        biases[site.slot][site.layer] = factor * biases[site.slot][site.layer] + addend
    each = {f"{slot}_factor": found for slot, found in factors.items()}
    return Written(**each, **{f"{slot}_bias": found for slot, found in biases.items()})


def above_of(model: PreTrainedModel, scorer: Scorer, policy: SparsityPolicy) -> Above:
    sizes, _ = describe(model)
    shape = (sizes.layers, len(SLOTS))
    factors = scorer.factors if isinstance(scorer, Scaled) else {}
    most = max((len(factor) for factor in factors.values()), default=0)
    found = Above(
        way=np.zeros(shape, np.int64),
        keep=np.zeros(shape, np.int64),
        above=np.zeros(shape, np.float32),
        factor=np.ones((*shape, most), np.float32),
    )
    for site in find_sites(model, ["channel"]):
        if site.slot not in SLOTS:
            continue
        at = site.layer, SLOTS.index(site.slot)
        found.keep[at] = site.units
        if site.key in factors:
            found.factor[(*at, slice(site.units))] = factors[site.key].float().cpu().numpy()
        if policy.prunes(site.key) and policy.scope == "layer":
            found.way[at] = TOP
            found.keep[at] = site.units - policy.gone(site.units, policy.level_of(site.key))
        elif policy.prunes(site.key):
            found.way[at], found.keep[at] = ABOVE, min(policy.min_units, site.units)
            found.above[at] = policy.threshold_of(site.key)
    return found


def pack_channels(model: PreTrainedModel, storage: Storage) -> ChannelWeights:
    sizes, parts = describe(model)
    bits, layers = BITS[storage], parts.layers
    neurons = ("gate", "up") if sizes.gated else ("up",)
    embedding = in_groups_of([parts.embedding], bits)
    tied = parts.head.weight.data_ptr() == parts.embedding.weight.data_ptr()
    return ChannelWeights(
        sizes=sizes,
        qkv=rows_of_inputs(layers, ("query", "key", "value"), bits),
        o=rows_of_inputs(layers, ("output",), bits),
        gate_up=rows_of_inputs(layers, neurons, bits),
        down=rows_of_inputs(layers, ("down",), bits),
        qkv_bias=biases(layers, ("query", "key", "value")),
        o_bias=biases(layers, ("output",)),
        gate_up_bias=biases(layers, neurons),
        down_bias=biases(layers, ("down",)),
        embedding=embedding,
        vocabulary=embedding if tied else in_groups_of([parts.head], bits),
        vocabulary_bias=bias_of(parts.head)[None].numpy(),
        positions=position_rows(parts, sizes),
        attention_norm=norms([layer.attention_norm for layer in layers]),
        neuron_norm=norms([layer.neuron_norm for layer in layers]),
        last_norm=norms([parts.last_norm]),
    )


def together(layer: LayerParts, roles: Sequence[str]) -> Tensor:
    """Their weights, one below the other: [outputs, inputs]."""
    weights = [linear_of(role, layer).weight.detach() for role in roles]
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def rows_of_inputs(layers: Sequence[LayerParts], roles: Sequence[str], bits: int) -> OutRows:
    every: list[nn.Linear] = [linear_of(role, layer) for layer in layers for role in roles]
    bits, files = bits_for([one.weight.detach() for one in every], bits), file_ranges()
    rows: OutRows | None = None
    for index, layer in enumerate(layers):
        weight = together(layer, roles)
        rows = rows or empty_out(bits, len(layers), *weight.T.shape)
        put_out(rows, index, weight.T)
        for role in roles:
            let_go(linear_of(role, layer).weight, files)
    assert rows is not None
    return rows


def units_of(weights: Weights | ChannelWeights) -> list[tuple[SiteKey, int]]:
    """Of every site, in the order in which compiled code counts them."""
    sizes = weights.sizes
    each = [("head", sizes.heads), ("neuron", sizes.neurons)]
    if isinstance(weights, ChannelWeights):
        inner = sizes.heads * sizes.head_width
        each = list(zip(SLOTS, (sizes.width, inner, sizes.width, sizes.neurons)))
    return [((layer, slot), units) for layer in range(sizes.layers) for slot, units in each]


def biases(layers: Sequence[LayerParts], roles: Sequence[str]) -> np.ndarray:
    return torch.stack([torch.cat([bias_of(linear_of(r, layer)) for r in roles]) for layer in layers]).numpy()
