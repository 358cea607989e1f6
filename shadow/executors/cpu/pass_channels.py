"""Many positions of a batch, from rows of inputs in 8 and 4 bits, in one compiled call."""

from typing import NamedTuple

import numpy as np

from shadow.executors.cpu.at_position import embed, remember_at, say_at
from shadow.executors.cpu.block_attention import attend_from
from shadow.executors.cpu.blocks import add_rounded
from shadow.executors.cpu.channels import DOWN, GATE_UP, OUTPUT, QKV
from shadow.executors.cpu.decode import norm
from shadow.executors.cpu.decode_channels import mark
from shadow.executors.cpu.scoring import ABOVE
from shadow.executors.cpu.states import quantise
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.team import meet, share
from shadow.plans.compiled import compiled


class Picked(NamedTuple):
    """Room to choose in. scores: float32, keep: bool and ranked: int32 [members, most inputs]; kept: int64
    [members, L, 4], channels that stayed where it is real; heads: bool [H], all of which attend."""

    scores: np.ndarray
    keep: np.ndarray
    ranked: np.ndarray
    kept: np.ndarray
    heads: np.ndarray


@compiled(FAST)
def drop(x, position, units, layer, slot, above, scores, keep, ranked):
    """Where this position's numbers go, they become 0. -> how many stay."""
    way, n, least = above.way[layer, slot], above.keep[layer, slot], above.above[layer, slot]
    if way == 0:
        return units
    if way == ABOVE and above.factor.shape[2] == 0:
        count = 0
        for unit in range(units):
            count += abs(x[position, unit]) > least
        if count >= n:
            for unit in range(units):
                if not abs(x[position, unit]) > least:
                    x[position, unit] = 0
            return count
    count = mark(x, position, units, layer, slot, above, scores, keep, ranked)
    for unit in range(units):
        if not keep[unit]:
            x[position, unit] = 0
    return count


@compiled()
def drop_and_round(x, units, states, layer, slot, above, picked, real, whole, member, members):
    """x: [N, units]"""
    scores, keep, ranked = picked.scores[member], picked.keep[member], picked.ranked[member]
    start, stop = share(len(x), member, members)
    kept = 0
    for position in range(start, stop):
        count = units
        if not whole[position]:
            count = drop(x, position, units, layer, slot, above, scores, keep, ranked)
        if real[position]:
            kept += count
        quantise(x, position, units, states, position)
    picked.kept[member, layer, slot] += kept


@compiled(FAST)
def finish_written(y, position, layer, factor, bias, plain, whole):
    """What becomes of the sums of a position; plain: the bias of those that are whole."""
    outputs = factor.shape[1]
    if whole:
        for n in range(outputs):
            y[position, n] += plain[layer, n]
        return
    for n in range(outputs):
        y[position, n] = y[position, n] * factor[layer, n] + bias[layer, n]


@compiled()
def add_written(h, y, start, stop, layer, factor, bias, plain, whole):
    """What becomes of the sums of some positions, added to the stream."""
    for position in range(start, stop):
        finish_written(y, position, layer, factor, bias, plain, whole[position])
        for e in range(h.shape[1]):
            h[position, e] += y[position, e]


@compiled()
def pass_channels(
    weights, above, written, room, picked, memory, ids, real, whole, before, board, member, members
):
    """ids: int64 [B, T] behind so many columns -> room.x, the last norm's output; real, whole: bool [B * T],
    positions that count, and those where all channels stay. The memory has room for the columns."""
    sizes = weights.sizes
    tokens, count = ids.shape[1], ids.size
    width, inner = sizes.width, sizes.heads * sizes.head_width
    stored, heads, turned = sizes.kv_heads * sizes.head_width, picked.heads, room.turned[member]
    h, x, y, context, said, panels = room.h, room.x, room.y, room.context, room.said, room.panels
    start, stop = share(count, member, members)
    own, normed = h[start:stop], x[start:stop]
    embed(weights, memory, ids, before, h, start, stop)
    for layer in range(sizes.layers):
        norm(weights, weights.attention_norm, layer, own, normed)
        drop_and_round(x, width, room.of_width, layer, QKV, above, picked, real, whole, member, members)
        meet(board, members)
        add_rounded(weights.qkv, layer, count, room.of_width, panels, y, member, members)
        meet(board, members)
        for position in range(start, stop):
            finish_written(
                y, position, layer, written.qkv_factor, written.qkv_bias, weights.qkv_bias, whole[position]
            )
            b, column = position // tokens, before + position % tokens
            remember_at(sizes, layer, memory, y, position, b, column, inner, inner + stored, turned)
        meet(board, members)
        attend_from(sizes, layer, memory, y, tokens, before, heads, context, room, member, members)
        meet(board, members)
        drop_and_round(
            context, inner, room.of_heads, layer, OUTPUT, above, picked, real, whole, member, members
        )
        meet(board, members)
        add_rounded(weights.o, layer, count, room.of_heads, panels, y, member, members)
        meet(board, members)
        add_written(h, y, start, stop, layer, written.o_factor, written.o_bias, weights.o_bias, whole)
        norm(weights, weights.neuron_norm, layer, own, normed)
        drop_and_round(x, width, room.of_width, layer, GATE_UP, above, picked, real, whole, member, members)
        meet(board, members)
        add_rounded(weights.gate_up, layer, count, room.of_width, panels, y, member, members)
        meet(board, members)
        for position in range(start, stop):
            finish_written(
                y, position, layer, written.gate_up_factor, written.gate_up_bias, weights.gate_up_bias,
                whole[position],
            )  # fmt: skip
            say_at(y, position, sizes.gated, sizes.neurons, sizes.neurons, said)
        drop_and_round(
            said, sizes.neurons, room.of_neurons, layer, DOWN, above, picked, real, whole, member, members
        )
        meet(board, members)
        add_rounded(weights.down, layer, count, room.of_neurons, panels, y, member, members)
        meet(board, members)
        add_written(
            h, y, start, stop, layer, written.down_factor, written.down_bias, weights.down_bias, whole
        )
    norm(weights, weights.last_norm, 0, own, normed)
