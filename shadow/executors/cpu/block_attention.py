"""Attention of many positions: eight at a time, where heads are as wide as some vectors."""

import numpy as np

from shadow.executors.cpu.attention import LANES, attend_at, softmax
from shadow.executors.cpu.decode import turn
from shadow.executors.cpu.team import share
from shadow.executors.cpu.vectors import (
    address_of,
    everywhere,
    fused,
    no_floats,
    read_everywhere_float,
    read_floats,
    store_floats,
    times,
)
from shadow.plans.compiled import compiled

EIGHT = 8  # queries that are multiplied at once


@compiled()
def attend_all(sizes, layer, memory, y, tokens, before, heads, context, turned, weights, member, members):
    """Contexts of `heads`, bool [H], at all positions, each over the columns up to its own."""
    width, room, count = sizes.head_width, memory.turns.shape[1], len(context)
    keys, values, scaling = memory.keys, memory.values, np.float32(sizes.scaling)
    start, stop = share(count * sizes.heads, member, members)
    for task in range(start, stop):
        b, head, token = task // (sizes.heads * tokens), task // tokens % sizes.heads, task % tokens
        if not heads[head]:
            continue
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
def turn_over(keys, line, width, count, length, turned):
    """turned: flat, becomes [width, length] of `count` keys [count, width], which lie from `line` on; behind
    them zeros up to whole vectors."""
    for d in range(width):
        for at in range(count):
            turned[d * length + at] = keys[line + at * width + d]
        for at in range(count, -(-count // LANES) * LANES):
            turned[d * length + at] = 0


@compiled()
def eight_sums(many, step, factors, each, next_factor, count, out, line):
    """Of eight lines, the sums over `count` vectors, `step` bytes apart, each times its factor; factors of
    lines are `each` bytes apart, of vectors `next_factor`. -> a vector a line, at out, `line` bytes apart."""
    a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()
    e, f, g, h = no_floats(), no_floats(), no_floats(), no_floats()
    for at in range(count):
        one, of = read_floats(many + at * step), factors + at * next_factor
        a = fused(one, read_everywhere_float(of), a)
        b = fused(one, read_everywhere_float(of + each), b)
        c = fused(one, read_everywhere_float(of + 2 * each), c)
        d = fused(one, read_everywhere_float(of + 3 * each), d)
        e = fused(one, read_everywhere_float(of + 4 * each), e)
        f = fused(one, read_everywhere_float(of + 5 * each), f)
        g = fused(one, read_everywhere_float(of + 6 * each), g)
        h = fused(one, read_everywhere_float(of + 7 * each), h)
    store_floats(out, a)
    store_floats(out + line, b)
    store_floats(out + 2 * line, c)
    store_floats(out + 3 * line, d)
    store_floats(out + 4 * line, e)
    store_floats(out + 5 * line, f)
    store_floats(out + 6 * line, g)
    store_floats(out + 7 * line, h)


@compiled()
def attend_eight(
    sizes, memory, y, b, head, token, tokens, before, start, keys, length, line, context, queries, scores
):
    """Contexts of a head at eight positions of a row from `token` on, or of those there are.

    keys: turned over, from column `start` on, `length` a line; line: where values of that column lie;
    queries: [8, D] and scores: [8, length] are for work."""
    width, scaling = sizes.head_width, np.float32(sizes.scaling)
    for number in range(EIGHT):
        own = min(token + number, tokens - 1)
        position, column = b * tokens + own, before + own
        if sizes.rotary:
            at = column - min(memory.offset[b], column)
            turn(y, position, head * width, memory.turns, at, width // 2, queries[number])
        else:
            for d in range(width):
                queries[number, d] = y[position, head * width + d]
    last = before + min(token + EIGHT, tokens) - start
    query_at, score_at = address_of(queries), address_of(scores)
    for at in range(0, last, LANES):
        eight_sums(
            address_of(keys) + at * 4,
            length * 4,
            query_at,
            width * 4,
            4,
            width,
            score_at + at * 4,
            length * 4,
        )
    for number in range(EIGHT):
        column = before + min(token + number, tokens - 1)
        first, behind = min(memory.start[b], column) - start, column + 1 - start
        for at in range(first, behind):
            scores[number, at] *= scaling
        for at in range(first):
            scores[number, at] = -np.inf
        for at in range(behind, -(-last // LANES) * LANES):
            scores[number, at] = -np.inf
        here = score_at + number * length * 4
        inverse = everywhere(np.float32(1) / softmax(here, last))
        for at in range(0, last, LANES):
            store_floats(here + at * 4, times(read_floats(here + at * 4), inverse))
    values, row = address_of(memory.values) + line * 4, b * tokens + token
    for d in range(0, width * 4, LANES * 4):
        eight_sums(values + d, width * 4, score_at, length * 4, 4, last, query_at + d, width * 4)
    for number in range(min(EIGHT, tokens - token)):
        for d in range(width):
            context[row + number, head * width + d] = queries[number, d]


@compiled()
def attend_in_eights(sizes, layer, memory, y, tokens, before, heads, context, room, member, members):
    """As `attend_all`."""
    keys, queries, scores = room.turned_keys[member], room.queries[member], room.eights[member]
    width, length = sizes.head_width, scores.shape[1]
    rows = len(context) // tokens
    blocks = -(-tokens // EIGHT)
    first, last = share(rows * sizes.heads * blocks, member, members)
    known = -1
    for task in range(first, last):
        pair, block = task // blocks, task % blocks
        b, head = pair // sizes.heads, pair % sizes.heads
        if not heads[head]:
            continue
        group = head // (sizes.heads // sizes.kv_heads)
        start = min(memory.start[b], before)
        slot = memory.slots[layer] * b + memory.slot[layer, group]
        line = memory.base[layer] + (slot * memory.turns.shape[1] + start) * width
        if known != b * sizes.kv_heads + group:
            turn_over(memory.keys, line, width, before + tokens - start, length, keys)
            known = b * sizes.kv_heads + group
        attend_eight(
            sizes, memory, y, b, head, block * EIGHT, tokens, before, start, keys, length, line, context,
            queries, scores,
        )  # fmt: skip


@compiled()
def attend_from(sizes, layer, memory, y, tokens, before, heads, context, room, member, members):
    """As `attend_all`, in the faster way."""
    if tokens >= EIGHT and sizes.head_width % LANES == 0:
        attend_in_eights(sizes, layer, memory, y, tokens, before, heads, context, room, member, members)
        return
    turned, weights = room.turned[member], room.weights[member]
    attend_all(sizes, layer, memory, y, tokens, before, heads, context, turned, weights, member, members)
