"""What happens at one position, of many: embeddings, keys and values, and what neurons say."""

import numpy as np

from shadow.executors.cpu.attention import LANES
from shadow.executors.cpu.decode import turn
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.vectors import address_of, read_floats, silu, store_floats, times
from shadow.executors.cpu.widen import widen_row
from shadow.plans.compiled import compiled


@compiled()
def embed(weights, memory, ids, before, h, start, stop):
    """Lines of h: [B * T, E] from `start` up to `stop` become what the first layer reads; ids: int64 [B, T]
    behind so many columns."""
    sizes, tokens = weights.sizes, ids.shape[1]
    for position in range(start, stop):
        b, column = position // tokens, before + position % tokens
        widen_row(weights.embedding, 0, ids[b, position % tokens], h, position)
        if not sizes.rotary:
            h[position] += weights.positions[sizes.first + column - min(memory.offset[b], column)]


@compiled(FAST)
def remember_at(sizes, layer, memory, y, position, b, column, first, behind, turned):
    """Put the keys, turned, and values of a position, which lie in its line of y from `first` and `behind`
    on, into the memory, where it holds these heads."""
    width, room = sizes.head_width, memory.turns.shape[1]
    at = column - min(memory.offset[b], column)
    for group in range(sizes.kv_heads):
        slot = memory.slot[layer, group]
        if slot < 0:
            continue
        line = memory.base[layer] + ((b * memory.slots[layer] + slot) * room + column) * width
        begin, value = first + group * width, behind + group * width
        if sizes.rotary:
            turn(y, position, begin, memory.turns, at, width // 2, turned)
            for d in range(width):
                memory.keys[line + d] = turned[d]
        else:
            for d in range(width):
                memory.keys[line + d] = y[position, begin + d]
        for d in range(width):
            memory.values[line + d] = y[position, value + d]


@compiled(FAST)
def say_at(y, position, gated, behind, count, said):
    """What so many neurons say at a position, of which y has what gates read and, from `behind` on, what
    stands beside them, or without a gate that alone. `said` may be y."""
    if not gated:
        for f in range(count):
            said[position, f] = max(y[position, f], np.float32(0))
        return
    gate, to = address_of(y) + position * y.shape[1] * 4, address_of(said) + position * said.shape[1] * 4
    for f in range(0, count - LANES + 1, LANES):
        spoken = silu(read_floats(gate + f * 4))
        store_floats(to + f * 4, times(spoken, read_floats(gate + (behind + f) * 4)))
    for f in range(count // LANES * LANES, count):
        value = y[position, f]
        said[position, f] = y[position, behind + f] * (value / (np.float32(1) + np.exp(-value)))
