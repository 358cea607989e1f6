"""Compiled: from a state to scores, and from scores to what stays."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from shadow.executors.cpu.between import dots_between
from shadow.executors.cpu.matrices import In, empty_rows, put_rows
from shadow.executors.cpu.team import meet, share
from shadow.executors.options import Storage
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import KINDS, Kind
from shadow.plans.compiled import compiled
from shadow.plans.policy import SparsityPolicy
from shadow.plans.selection import NO_GUESS, keep_top
from shadow.scorers.nets import Tap
from shadow.scorers.predicted import Predicted

HEADS, NEURONS = 0, 1  # the order of KINDS
TOP, ABOVE = 1, 2  # how a layer's kind is pruned; 0: not at all


class Nets(NamedTuple):
    """Every tap's net. taps: int64 [N, 3], the layer that is read, and the layers that are scored, from and
    to; center, scale: float32 [N, E]; kinds: bool [2], those that are scored; exact: states
    are not rounded where rows are in 8 or 4 bits.

    first: rows [N, W, E], others: [N * (depth - 1), W, W] and bend: [N, R, W] of the hidden layers, which
    `depth` [1] counts, with biases [N, W] and [N * (depth - 1), W], zeros of `bend`; down: [N, R, E] with
    bias [N, R]; up: of each kind, rows [1, L * U, R] of all layers, zeros where none is scored, and static:
    float32 [1, L * U].
    """

    taps: np.ndarray
    depth: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    first: In
    first_bias: np.ndarray
    others: In
    others_bias: np.ndarray
    bend: In
    bend_bias: np.ndarray
    down: In
    down_bias: np.ndarray
    up_heads: In
    up_neurons: In
    static_heads: np.ndarray
    static_neurons: np.ndarray
    kinds: np.ndarray
    exact: bool


class Rule(NamedTuple):
    """How each layer's kinds are pruned. way: int64 [L, 2]; keep: int64 [L, 2], units that stay, or for ABOVE
    at least; above: float32 [L, 2], the score that a unit must exceed."""

    way: np.ndarray
    keep: np.ndarray
    above: np.ndarray


class Choice(NamedTuple):
    """What stays. heads: bool [B, L, H] and neurons [B, L, F]; head_list: int32 [L, H], neuron_list: [L, F],
    what stays in any row, in rising order, and counts: int64 [L, 2], how many those are; kept: int64 [L, 2],
    added up over rows and steps."""

    heads: np.ndarray
    neurons: np.ndarray
    head_list: np.ndarray
    neuron_list: np.ndarray
    counts: np.ndarray
    kept: np.ndarray


def no_rule(layers: int) -> Rule:
    way, keep = np.zeros((layers, 2), np.int64), np.zeros((layers, 2), np.int64)
    return Rule(way, keep, np.zeros((layers, 2), np.float32))


def no_nets(storage: Storage) -> Nets:
    return empty_nets(storage, 0, 0, 1, 1, 1, {"head": 1, "neuron": 1}, 1)


def empty_nets(
    storage: Storage,
    taps: int,
    depth: int,
    width: int,
    wide: int,
    rank: int,
    units: Mapping[Kind, int],
    layers: int,
) -> Nets:
    """Zeros."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    more = taps * max(depth - 1, 0)
    rows = {kind: layers * count for kind, count in units.items()}
    return Nets(
        taps=np.zeros((taps, 3), np.int64),
        depth=np.array([depth]),
        center=zeros(taps, width),
        scale=zeros(taps, width),
        first=empty_rows(storage, taps, wide, width),
        first_bias=zeros(taps, wide),
        others=empty_rows(storage, more, wide, wide),
        others_bias=zeros(more, wide),
        bend=empty_rows(storage, taps, rank, wide),
        bend_bias=zeros(taps, rank),
        down=empty_rows(storage, taps, rank, width),
        down_bias=zeros(taps, rank),
        up_heads=empty_rows(storage, 1, rows["head"], rank),
        up_neurons=empty_rows(storage, 1, rows["neuron"], rank),
        static_heads=zeros(1, rows["head"]),
        static_neurons=zeros(1, rows["neuron"]),
        kinds=np.zeros(2, np.bool_),
        exact=False,
    )


def pack_nets(predicted: Predicted, units: Mapping[Kind, int], storage: Storage) -> Nets:
    """units: in a layer of the model. Its nets must be this framework's own, and read states."""
    found: list[Tap] = []
    for tap in predicted.taps:
        net = predicted.net.reader(tap)
        assert isinstance(net, Tap)
        found.append(net)
    rank, depth = max(net.down.out_features for net in found), len(found[0].hidden)
    wide = found[0].bend.in_features if found[0].bend is not None else 1
    layers = found[-1].span.stop
    nets = empty_nets(storage, len(found), depth, found[0].width, wide, rank, units, layers)
    of_kinds = ((nets.up_heads, nets.static_heads), (nets.up_neurons, nets.static_neurons))
    for index, (tap, net) in enumerate(zip(predicted.taps, found)):
        nets.taps[index] = tap, net.span.start, net.span.stop
        nets.center[index], nets.scale[index] = net.center.numpy(), net.scale.numpy()
        put_rows(nets.down, index, wider(net.down.weight, rank, 0))
        nets.down_bias[index] = wider(net.down.bias, rank, 0).detach().numpy()
        for number, layer in enumerate(net.hidden):
            assert isinstance(layer, torch.nn.Linear)
            line = index if number == 0 else index * (depth - 1) + number - 1
            put_rows(nets.first if number == 0 else nets.others, line, layer.weight)
            (nets.first_bias if number == 0 else nets.others_bias)[line] = layer.bias.detach().numpy()
        if net.bend is not None:
            put_rows(nets.bend, index, wider(net.bend.weight, rank, 0))
        for number, kind in enumerate(KINDS):
            if kind in net.units:
                up, static = of_kinds[number]
                lines = slice(net.span.start * units[kind], net.span.stop * units[kind])
                put_rows(up, 0, wider(net.up[kind].get_parameter("weight"), rank, 1), lines.start)
                static[0, lines] = net.static[kind].detach().flatten().numpy()
                nets.kinds[number] = True
    return nets


def wider(values: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    """Zeros behind them, up to this size of the dimension."""
    missing = size - values.shape[dim]
    return torch.cat([values, values.new_zeros(*values.shape[:dim], missing, *values.shape[dim + 1 :])], dim)


def rule_of(model: PreTrainedModel, policy: SparsityPolicy) -> Rule:
    assert policy.scope != "global", "layers that are not yet scored cannot be ranked"
    rule = no_rule(len(find_layers(model)))
    for site in find_sites(model):
        unit, at = (site.layer, site.kind), (site.layer, KINDS.index(site.kind))
        if not policy.prunes(unit):
            rule.keep[at] = site.units
        elif policy.scope == "layer":
            rule.way[at], rule.keep[at] = TOP, site.units - policy.gone(site.units, policy.level_of(unit))
        else:
            rule.way[at], rule.keep[at] = ABOVE, min(policy.min_units, site.units)
            rule.above[at] = policy.threshold_of(unit)
    return rule


@compiled()
def gelu(value):
    return np.float32(0.5) * value * np.float32(1.0 + math.erf(value * 0.7071067811865476))


@compiled()
def score_tap(
    nets, tap, h, scaled, hidden, told, bent, head_scores, neuron_scores, lines, units, board, member, members
):
    """h: [B, E] -> head_scores: [B, L * H] and neuron_scores: [B, L * F] of the tap's layers.

    scaled: [members, B, E], hidden: [depth, B, W], told, bent: [B, R] and lines: for work; units: (H, F).
    """
    rows, width = h.shape
    depth, center, scale, x = nets.depth[0], nets.center, nets.scale, scaled[member]
    for b in range(rows):
        for e in range(width):
            x[b, e] = (h[b, e] - center[tap, e]) / scale[tap, e]
    last = hidden[max(depth - 1, 0)]
    for layer in range(depth):
        start, stop = share(hidden.shape[2], member, members)
        now, before = hidden[layer], hidden[max(layer - 1, 0)]
        if layer == 0:
            dots_between(x, nets.first, nets.first_bias, tap, start, stop, lines, now, nets.exact)
        else:
            line = tap * (depth - 1) + layer - 1
            dots_between(before, nets.others, nets.others_bias, line, start, stop, lines, now, nets.exact)
        for row in range(start, stop):
            for b in range(rows):
                now[b, row] = gelu(now[b, row])
                if layer > 0:
                    now[b, row] += before[b, row]
        meet(board, members)
    start, stop = share(told.shape[1], member, members)
    dots_between(x, nets.down, nets.down_bias, tap, start, stop, lines, told, nets.exact)
    if depth > 0:
        dots_between(last, nets.bend, nets.bend_bias, tap, start, stop, lines, bent, nets.exact)
        for row in range(start, stop):
            for b in range(rows):
                told[b, row] += bent[b, row]
    meet(board, members)
    begin, end = nets.taps[tap, 1], nets.taps[tap, 2]
    for kind in range(2):
        if not nets.kinds[kind]:
            continue
        first = begin * units[kind]
        start, stop = share((end - begin) * units[kind], member, members)
        up = nets.up_heads if kind == HEADS else nets.up_neurons
        static = nets.static_heads if kind == HEADS else nets.static_neurons
        scores = head_scores if kind == HEADS else neuron_scores
        dots_between(told, up, static, 0, first + start, first + stop, lines, scores, nets.exact)
    meet(board, members)


@compiled()
def choose(rule, choice, head_scores, neuron_scores, first, last, work, real, units, board, member, members):
    """Fill in what stays of the layers from `first` up to `last`. work: int32 [members, max(H, F)]."""
    rows = len(real)
    heads, neurons, ranked = choice.heads, choice.neurons, work[member]
    start, stop = share((last - first) * 2, member, members)
    for task in range(start, stop):
        layer, kind = first + task // 2, task % 2
        count, scores = units[kind], head_scores if kind == HEADS else neuron_scores
        way, n, above = rule.way[layer, kind], rule.keep[layer, kind], rule.above[layer, kind]
        total = 0
        for b in range(rows):
            keep = heads[b, layer] if kind == HEADS else neurons[b, layer]
            if way == 0:
                keep[:] = True
            else:
                keep_top(scores[b], layer * count, count, n, ranked, keep, NO_GUESS)
            if way == ABOVE:
                for unit in range(count):
                    if scores[b, layer * count + unit] > above:
                        keep[unit] = True
            if real[b]:
                for unit in range(count):
                    total += keep[unit]
        choice.kept[layer, kind] += total
        list_layer(choice, layer, kind)
    meet(board, members)


@compiled()
def list_layer(choice, layer, kind):
    keep = choice.heads if kind == HEADS else choice.neurons
    found = choice.head_list if kind == HEADS else choice.neuron_list
    rows, _, count = keep.shape
    n = 0
    for unit in range(count):
        for b in range(rows):
            if keep[b, layer, unit]:
                found[layer, n] = unit
                n += 1
                break
    choice.counts[layer, kind] = n


@compiled()
def list_all(choice):
    """Fill in the lists, and how many they name, of all layers."""
    for layer in range(len(choice.counts)):
        list_layer(choice, layer, HEADS)
        list_layer(choice, layer, NEURONS)


def kept_by(choice: Choice, kept: np.ndarray, chosen: int, real: torch.Tensor) -> np.ndarray:
    """kept: [L, 2], units of the layers from `chosen` on that stayed where it is real -> of all layers; the
    choice has a line for so many neighbours of real: bool [B, T]."""
    lines = real.reshape(len(choice.heads), -1).sum(1).numpy()
    for kind, stays in enumerate((choice.heads, choice.neurons)):
        kept[:chosen, kind] = lines @ stays[:, :chosen].sum(2)
    return kept
