"""Attention of one new token, in vectors, where heads are as wide as some of them."""

import numpy as np

from shadow.executors.cpu.decode import turn
from shadow.executors.cpu.scoring import HEADS
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
