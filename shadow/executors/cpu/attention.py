"""Attention of one new token, in vectors, where heads are as wide as some of them."""

import numpy as np

from shadow.executors.cpu.decode import turn
from shadow.executors.cpu.scoring import HEADS
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.team import share
from shadow.executors.cpu.vectors import (
    address_of,
    everywhere,
    exponential,
    fused,
    greater,
    largest,
    no_floats,
    plus,
    read_floats,
    store_floats,
    times,
    total,
)
from shadow.plans.compiled import compiled

LANES = 16  # numbers of a vector


@compiled()
def softmax(scores, count):
    """Of `count` numbers at this address, in place, but for the division; behind them is room for 15 more. ->
    their sum."""
    highest = everywhere(np.float32(-np.inf))
    for at in range(0, count, LANES):
        highest = greater(highest, read_floats(scores + at * 4))
    below, sums = everywhere(np.float32(-largest(highest))), no_floats()
    for at in range(0, count, LANES):
        found = exponential(plus(read_floats(scores + at * 4), below))
        store_floats(scores + at * 4, found)
        sums = plus(sums, found)
    return total(sums)


@compiled(FAST)
def attend_at(query, keys, values, line, count, width, scaling, scores, context, row, head):
    """A head's context in this row of context: [N, H * D], of `count` keys and values: flat, from `line` on.
    query: float32 [D]; scores: room for 15 more than there are keys."""
    scores_at, query_at = address_of(scores), address_of(query)
    keys_at, values_at = address_of(keys) + line * 4, address_of(values) + line * 4
    if width % LANES > 0:
        for at in range(count):
            found = np.float32(0)
            for d in range(width):
                found += query[d] * keys[line + at * width + d]
            scores[at] = found * scaling
    else:
        for at in range(count):
            key, sums = keys_at + at * width * 4, no_floats()
            for d in range(0, width * 4, LANES * 4):
                sums = fused(read_floats(query_at + d), read_floats(key + d), sums)
            scores[at] = total(sums) * scaling
    for at in range(count, -(-count // LANES) * LANES):
        scores[at] = -np.inf
    inverse = np.float32(1) / softmax(scores_at, count)
    begin = head * width
    if width % LANES > 0:
        for d in range(begin, begin + width):
            context[row, d] = 0
        for at in range(count):
            share_of = scores[at] * inverse
            for d in range(width):
                context[row, begin + d] += share_of * values[line + at * width + d]
        return
    to = address_of(context) + (row * context.shape[1] + begin) * 4
    for d in range(0, width * 4, LANES * 4):
        sums, value = no_floats(), values_at + d
        for at in range(count):
            sums = fused(everywhere(scores[at]), read_floats(value + at * width * 4), sums)
        store_floats(to + d, times(sums, everywhere(inverse)))


@compiled()
def attend_in_vectors(weights, layer, choice, memory, position, bench, member, members):
    """Contexts of the heads that stay, over all positions up to this one, as `decode.attend`; D is a multiple
    of 16."""
    sizes = weights.sizes
    rows, width = bench.h.shape[0], sizes.head_width
    room = memory.turns.shape[1]
    kept = choice.counts[layer, HEADS]
    start, stop = share(kept * rows, member, members)
    scores, query = bench.weights[member], bench.turned[member, 1]
    scores_at, query_at, context_at = address_of(scores), address_of(query), address_of(bench.context)
    heads, found, queries, context = choice.heads, choice.head_list, bench.query, bench.context
    turns, slots, starts, offsets = memory.turns, memory.slot, memory.start, memory.offset
    keys_at, values_at = address_of(memory.keys), address_of(memory.values)
    base, stored, scaling = memory.base[layer], memory.slots[layer], np.float32(sizes.scaling)
    for task in range(start, stop):
        b, head = task // kept, found[layer, task % kept]
        if not heads[b, layer, head]:
            continue
        first = starts[b]
        if sizes.rotary:
            turn(queries, b, head * width, turns, position - offsets[b], width // 2, query)
        else:
            for d in range(width):
                query[d] = queries[b, head * width + d]
        slot = slots[layer, head // (sizes.heads // sizes.kv_heads)]
        line = (base + ((b * stored + slot) * room + first) * width) * 4
        count = position + 1 - first
        for at in range(count):
            key, sums = keys_at + line + at * width * 4, no_floats()
            for d in range(0, width * 4, LANES * 4):
                sums = fused(read_floats(query_at + d), read_floats(key + d), sums)
            scores[at] = total(sums) * scaling
        for at in range(count, -(-count // LANES) * LANES):
            scores[at] = -np.inf
        inverse = everywhere(np.float32(1) / softmax(scores_at, count))
        to = context_at + (b * context.shape[1] + head * width) * 4
        for d in range(0, width * 4, LANES * 4):
            sums, value = no_floats(), values_at + line + d
            for at in range(count):
                sums = fused(everywhere(scores[at]), read_floats(value + at * width * 4), sums)
            store_floats(to + d, times(sums, inverse))
