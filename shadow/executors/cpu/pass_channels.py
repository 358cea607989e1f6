"""Many positions of a batch, from rows of inputs in 8 and 4 bits, in one compiled call."""

from typing import NamedTuple

import numpy as np

from shadow.executors.cpu.attention import LANES, attend_at
from shadow.executors.cpu.block_attention import EIGHT, attend_in_eights
from shadow.executors.cpu.blocks import add_rounded
from shadow.executors.cpu.channels import DOWN, GATE_UP, OUTPUT, QKV
from shadow.executors.cpu.decode import norm, turn
from shadow.executors.cpu.decode_channels import mark
from shadow.executors.cpu.panels import Panels
from shadow.executors.cpu.scoring import ABOVE
from shadow.executors.cpu.states import States, quantise
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.team import meet, share
from shadow.executors.cpu.vectors import address_of, read_floats, silu, store_floats, times
from shadow.executors.cpu.widen import widen_row
from shadow.plans.compiled import compiled


class Pass(NamedTuple):
    """Room for N positions, float32. h, x: [N, E]; y: [N + 3, outputs], what a site's readers write; context:
    [N, H * D]; said: [N, F]; of_width, of_heads, of_neurons: these, and x, rounded.

    Of each member, for attention, turned: [members, D + 16], weights: [members, room + 32], queries:
    [members, 8, D], eights: [members, 8, room + 16] and turned_keys: [members, D * (room + 16)]; scores, keep
    and ranked: [members, most inputs]; kept: int64 [members, L, 4], channels that stayed where it is real."""

    h: np.ndarray
    x: np.ndarray
    y: np.ndarray
    context: np.ndarray
    said: np.ndarray
    of_width: States
    of_heads: States
    of_neurons: States
    panels: Panels
    turned: np.ndarray
    weights: np.ndarray
    queries: np.ndarray
    eights: np.ndarray
    turned_keys: np.ndarray
    scores: np.ndarray
    keep: np.ndarray
    ranked: np.ndarray
    kept: np.ndarray


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
def drop_and_round(x, units, states, layer, slot, above, room, real, whole, member, members):
    """x: [N, units]"""
    scores, keep, ranked = room.scores[member], room.keep[member], room.ranked[member]
    start, stop = share(len(x), member, members)
    kept = 0
    for position in range(start, stop):
        count = units
        if not whole[position]:
            count = drop(x, position, units, layer, slot, above, scores, keep, ranked)
        if real[position]:
            kept += count
        quantise(x, position, units, states, position)
    room.kept[member, layer, slot] += kept


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


@compiled(FAST)
def say_all(y, position, gated, said):
    """What the neurons say at a position."""
    neurons = said.shape[1]
    if not gated:
        for f in range(neurons):
            said[position, f] = max(y[position, f], np.float32(0))
        return
    gate, to = address_of(y) + position * y.shape[1] * 4, address_of(said) + position * neurons * 4
    for f in range(0, neurons - LANES + 1, LANES):
        spoken = silu(read_floats(gate + f * 4))
        store_floats(to + f * 4, times(spoken, read_floats(gate + (neurons + f) * 4)))
    for f in range(neurons // LANES * LANES, neurons):
        value = y[position, f]
        said[position, f] = y[position, neurons + f] * (value / (np.float32(1) + np.exp(-value)))


@compiled(FAST)
def remember_at(sizes, layer, memory, y, position, b, column, turned):
    """Put the keys, turned, and values of a position into the memory."""
    width, room = sizes.head_width, memory.turns.shape[1]
    first, behind = sizes.heads * width, sizes.kv_heads * width
    at = column - min(memory.offset[b], column)
    for group in range(sizes.kv_heads):
        slot = memory.slot[layer, group]
        line = memory.base[layer] + ((b * memory.slots[layer] + slot) * room + column) * width
        begin = first + group * width
        if sizes.rotary:
            turn(y, position, begin, memory.turns, at, width // 2, turned)
            for d in range(width):
                memory.keys[line + d] = turned[d]
        else:
            for d in range(width):
                memory.keys[line + d] = y[position, begin + d]
        for d in range(width):
            memory.values[line + d] = y[position, begin + behind + d]


@compiled()
def attend_all(sizes, layer, memory, y, tokens, before, context, turned, weights, member, members):
    """Contexts of all heads at all positions, each over the columns up to its own."""
    width, room, count = sizes.head_width, memory.turns.shape[1], len(context)
    keys, values, scaling = memory.keys, memory.values, np.float32(sizes.scaling)
    start, stop = share(count * sizes.heads, member, members)
    for task in range(start, stop):
        b, head, token = task // (sizes.heads * tokens), task // tokens % sizes.heads, task % tokens
        position, column = b * tokens + token, before + token
        first, at = min(memory.start[b], column), column - min(memory.offset[b], column)
        if sizes.rotary:
            turn(y, position, head * width, memory.turns, at, width // 2, turned)
        else:
            for d in range(width):
                turned[d] = y[position, head * width + d]
        slot = memory.slot[layer, head // (sizes.heads // sizes.kv_heads)]
        line = memory.base[layer] + ((b * memory.slots[layer] + slot) * room + first) * width
        attend_at(
            turned, keys, values, line, column + 1 - first, width, scaling, weights, context, position, head
        )


@compiled()
def pass_channels(weights, above, written, room, memory, ids, real, whole, before, board, member, members):
    """ids: int64 [B, T] behind so many columns -> room.x, the last norm's output; real, whole: bool [B * T],
    positions that count, and those where all channels stay. The memory has room for the columns."""
    sizes = weights.sizes
    tokens, count = ids.shape[1], ids.size
    width, inner = sizes.width, sizes.heads * sizes.head_width
    h, x, y, context, said, panels = room.h, room.x, room.y, room.context, room.said, room.panels
    turned, scores = room.turned[member], room.weights[member]
    start, stop = share(count, member, members)
    own, normed = h[start:stop], x[start:stop]
    for position in range(start, stop):
        b, column = position // tokens, before + position % tokens
        widen_row(weights.embedding, 0, ids[b, position % tokens], h, position)
        if not sizes.rotary:
            h[position] += weights.positions[sizes.first + column - min(memory.offset[b], column)]
    for layer in range(sizes.layers):
        norm(weights, weights.attention_norm, layer, own, normed)
        drop_and_round(x, width, room.of_width, layer, QKV, above, room, real, whole, member, members)
        meet(board, members)
        add_rounded(weights.qkv, layer, count, room.of_width, panels, y, member, members)
        meet(board, members)
        for position in range(start, stop):
            finish_written(
                y, position, layer, written.qkv_factor, written.qkv_bias, weights.qkv_bias, whole[position]
            )
            b, column = position // tokens, before + position % tokens
            remember_at(sizes, layer, memory, y, position, b, column, turned)
        meet(board, members)
        if tokens >= EIGHT and sizes.head_width % LANES == 0:
            attend_in_eights(sizes, layer, memory, y, tokens, before, context, room, member, members)
        else:
            attend_all(sizes, layer, memory, y, tokens, before, context, turned, scores, member, members)
        meet(board, members)
        drop_and_round(
            context, inner, room.of_heads, layer, OUTPUT, above, room, real, whole, member, members
        )
        meet(board, members)
        add_rounded(weights.o, layer, count, room.of_heads, panels, y, member, members)
        meet(board, members)
        add_written(h, y, start, stop, layer, written.o_factor, written.o_bias, weights.o_bias, whole)
        norm(weights, weights.neuron_norm, layer, own, normed)
        drop_and_round(x, width, room.of_width, layer, GATE_UP, above, room, real, whole, member, members)
        meet(board, members)
        add_rounded(weights.gate_up, layer, count, room.of_width, panels, y, member, members)
        meet(board, members)
        for position in range(start, stop):
            finish_written(
                y, position, layer, written.gate_up_factor, written.gate_up_bias, weights.gate_up_bias,
                whole[position],
            )  # fmt: skip
            say_all(y, position, sizes.gated, said)
        drop_and_round(
            said, sizes.neurons, room.of_neurons, layer, DOWN, above, room, real, whole, member, members
        )
        meet(board, members)
        add_rounded(weights.down, layer, count, room.of_neurons, panels, y, member, members)
        meet(board, members)
        add_written(
            h, y, start, stop, layer, written.down_factor, written.down_bias, weights.down_bias, whole
        )
    norm(weights, weights.last_norm, 0, own, normed)
