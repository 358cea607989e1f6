"""One new token for every row of a batch, from the rows of the inputs that stay, in one compiled call."""

from typing import NamedTuple

import numpy as np

from shadow.executors.cpu.attention import LANES, attend_in_vectors
from shadow.executors.cpu.channels import DOWN, GATE_UP, OUTPUT, QKV
from shadow.executors.cpu.decode import Bench, attend, norm, remember
from shadow.executors.cpu.decode_grouped import (
    ATTENTION,
    FFN,
    NORMS,
    OUTPUT_PART,
    PROJECTED,
    VOCABULARY,
    say,
    ticked,
)
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.row_dots import all_dots, start_of
from shadow.executors.cpu.row_sums import add_rows
from shadow.executors.cpu.scoring import ABOVE
from shadow.executors.cpu.states import quantise
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.team import meet, share
from shadow.executors.cpu.vectors import cycles
from shadow.executors.cpu.widen import widen_row
from shadow.plans.compiled import compiled
from shadow.plans.selection import NO_GUESS, keep_top


class Channels(NamedTuple):
    """Room to work in, beside a bench's. read: float32 [B, P] of each of `SLOTS`, what its rows are added up
    to; said: [B, F], what neurons say; scores: float32 [members, N], keep: bool and ranked: int32 [members,
    N]; kept: int64 [members, L, 4], channels that stayed, added up over rows and steps."""

    qkv: np.ndarray
    o: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray
    said: np.ndarray
    scores: np.ndarray
    keep: np.ndarray
    ranked: np.ndarray
    kept: np.ndarray


@compiled()
def mark(x, b, units, layer, slot, above, scores, keep, ranked):
    """keep[:units]: which of x's line b: [B, units or more] stay -> how many. The rest is room to work in."""
    n, least, factor = above.keep[layer, slot], above.above[layer, slot], above.factor
    for unit in range(units):
        scores[unit] = abs(x[b, unit])
    if factor.shape[2] > 0:
        for unit in range(units):
            scores[unit] *= factor[layer, slot, unit]
    if above.way[layer, slot] == ABOVE:
        count = 0
        for unit in range(units):
            keep[unit] = scores[unit] > least
            count += keep[unit]
        if count >= n:
            return count
    keep_top(scores, 0, units, n, ranked, keep, NO_GUESS)
    return min(n, units)


@compiled()
def pick(x, b, units, layer, slot, above, room, lines, factors, member):
    """-> how many of x's line b: [B, units or more] stay; `lines` says which, and `factors` their x."""
    way, n, least = above.way[layer, slot], above.keep[layer, slot], above.above[layer, slot]
    count = 0
    if way == 0:
        for unit in range(units):
            lines[unit], factors[unit] = unit, x[b, unit]
        return units
    if way == ABOVE and above.factor.shape[2] == 0:
        for unit in range(units):
            lines[count], factors[count] = unit, x[b, unit]
            count += abs(x[b, unit]) > least
        if count >= n:
            return count
    keep = room.keep[member]
    mark(x, b, units, layer, slot, above, room.scores[member], keep, room.ranked[member])
    count = 0
    for unit in range(units):
        if keep[unit]:
            lines[count], factors[count] = unit, x[b, unit]
            count += 1
    return count


@compiled()
def blocks_of(rows, member, members):
    """-> the vectors of outputs, from and to, that are this member's, and the outputs in them."""
    first, last = share(rows.blocks, member, members)
    size = VECTOR // rows.bits
    return first, last, first * size, min(rows.width, last * size)


@compiled()
def add_up(x, units, rows, layer, slot, above, room, y, bench, real, member, members, follow):
    """y: [B, P], this member's outputs of it become the sum of the rows that stay, times x: [B, units]."""
    first, last, _, _ = blocks_of(rows, member, members)
    size = VECTOR // rows.bits
    lines, factors = bench.lines[member], bench.factors[member]
    places, words, exact = bench.places[member], bench.words[member], bench.states.exact
    for b in range(len(y)):
        for p in range(first * size, last * size):
            y[b, p] = 0
        count = pick(x, b, units, layer, slot, above, room, lines, factors, member)
        if member == 0 and real[b]:
            room.kept[layer, slot] += count
        add_rows(y, b, factors, rows, layer, lines, count, places, words, first, last, follow, exact)


@compiled(FAST)
def add_to_stream(h, y, rows, factor, bias, layer, member, members):
    """h: [B, E] += this member's outputs."""
    _, _, start, stop = blocks_of(rows, member, members)
    column = rows.column
    for b in range(len(h)):
        for e in range(start, stop):
            h[b, e] += y[b, column[e]] * factor[layer, e] + bias[layer, e]


@compiled()
def part(y, rows, factor, bias, layer, start, out, member, members):
    """out: [B, N] becomes the outputs from `start` on, of this member's share."""
    column = rows.column
    first, last = share(out.shape[1], member, members)
    for b in range(len(y)):
        for n in range(first, last):
            out[b, n] = y[b, column[start + n]] * factor[layer, start + n] + bias[layer, start + n]


@compiled()
def neurons(sizes, room, bench, rows, factor, bias, layer, member, members):
    """What this member's share of the neurons say."""
    y, column, said, up, gate = room.gate_up, rows.column, room.said, bench.up, bench.gate
    first, last = share(sizes.neurons, member, members)
    behind = sizes.neurons if sizes.gated else 0
    for b in range(len(y)):
        for f in range(first, last):
            gate[b, f] = y[b, column[f]] * factor[layer, f] + bias[layer, f]
            above = behind + f
            up[b, f] = y[b, column[above]] * factor[layer, above] + bias[layer, above]
            said[b, f] = say(up, gate, sizes.gated, b, f)


@compiled()
def step_channels(
    weights, above, written, room, choice, memory, bench: Bench, ids, real, position, board, member, members
):
    """ids: int64 [B], the token at this position of each row -> bench.logits; real: bool [B], rows that count
    towards what was kept. All heads attend."""
    factor, bias = written.qkv_factor, written.qkv_bias
    sizes = weights.sizes
    rows, width, inner = len(ids), sizes.width, sizes.heads * sizes.head_width
    stored = sizes.kv_heads * sizes.head_width
    h, x = bench.h, bench.x[member]
    clock, then = bench.clock[member], cycles()
    if member == 0:
        for b in range(rows):
            widen_row(weights.embedding, 0, ids[b], h, b)
            if not sizes.rotary:
                h[b] += weights.positions[sizes.first + position - memory.offset[b]]
    meet(board, members)
    for layer in range(sizes.layers):
        norm(weights, weights.attention_norm, layer, h, x)
        then = ticked(clock, NORMS, then)
        follow = start_of(weights.o, layer)
        add_up(x, width, weights.qkv, layer, QKV, above, room, room.qkv, bench, real, member, members, follow)
        meet(board, members)
        part(room.qkv, weights.qkv, factor, bias, layer, 0, bench.query, member, members)
        part(room.qkv, weights.qkv, factor, bias, layer, inner, bench.key, member, members)
        part(room.qkv, weights.qkv, factor, bias, layer, inner + stored, bench.value, member, members)
        meet(board, members)
        then = ticked(clock, PROJECTED, then)
        remember(sizes, layer, memory, position, bench, member, members)
        meet(board, members)
        if sizes.head_width % LANES == 0:
            attend_in_vectors(weights, layer, choice, memory, position, bench, member, members)
        else:
            attend(weights, layer, choice, memory, position, bench, member, members)
        meet(board, members)
        then = ticked(clock, ATTENTION, then)
        follow = start_of(weights.gate_up, layer)
        add_up(
            bench.context,
            inner,
            weights.o,
            layer,
            OUTPUT,
            above,
            room,
            room.o,
            bench,
            real,
            member,
            members,
            follow,
        )
        add_to_stream(h, room.o, weights.o, written.o_factor, written.o_bias, layer, member, members)
        meet(board, members)
        then = ticked(clock, OUTPUT_PART, then)
        norm(weights, weights.neuron_norm, layer, h, x)
        then = ticked(clock, NORMS, then)
        follow = start_of(weights.down, layer)
        add_up(
            x, width, weights.gate_up, layer, GATE_UP, above, room, room.gate_up, bench, real, member,
            members, follow,
        )  # fmt: skip
        meet(board, members)
        neurons(
            sizes, room, bench, weights.gate_up, written.gate_up_factor, written.gate_up_bias, layer, member,
            members,
        )  # fmt: skip
        meet(board, members)
        further = layer + 1 < sizes.layers
        follow = start_of(weights.qkv, layer + 1) if further else start_of(weights.vocabulary, 0)
        add_up(
            room.said, sizes.neurons, weights.down, layer, DOWN, above, room, room.down, bench, real, member,
            members, follow,
        )  # fmt: skip
        add_to_stream(
            h, room.down, weights.down, written.down_factor, written.down_bias, layer, member, members
        )
        meet(board, members)
        then = ticked(clock, FFN, then)
    norm(weights, weights.last_norm, 0, h, x)
    start, stop = share(sizes.vocabulary, member, members)
    for b in range(rows):
        line = member * rows + b
        quantise(x, b, width, bench.states, line)
        all_dots(
            bench.states, line, weights.vocabulary, weights.vocabulary_bias, 0, start, stop, bench.logits, b
        )
    meet(board, members)
    ticked(clock, VOCABULARY, then)
