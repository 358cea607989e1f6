"""One new token for every row of a batch, in one compiled call."""

import math
from typing import NamedTuple

import numpy as np

from shadow.executors.cpu.between import dots_between
from shadow.executors.cpu.scoring import HEADS, NEURONS, choose, score_tap
from shadow.executors.cpu.states import States
from shadow.executors.cpu.storage import CHUNK, FAST, adds, dot, dots
from shadow.executors.cpu.team import meet, share
from shadow.plans.compiled import compiled


class Memory(NamedTuple):
    """Keys and values of earlier positions. keys, values: float32 [N]; a layer's are [B, slots, room, D]
    from `base` [L] on, where slots: [L] counts the key-value heads that are stored and slot: [L, G] says
    which, -1 for none. start: [B], a row's first real column; offset: [B], what columns count above
    positions; turns: [2, room, D / 2], cosine and sine of each position.

    With late keys, `states` has what a layer's heads read, [L, B, room, E], and `written`: bool [L, B, G,
    room], whether a key-value head has computed its keys and values of a position; else both are empty.
    """

    keys: np.ndarray
    values: np.ndarray
    base: np.ndarray
    slots: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    offset: np.ndarray
    turns: np.ndarray
    states: np.ndarray
    written: np.ndarray


class Bench(NamedTuple):
    """Room to work in, float32. What is each member's own has a line, or numbers, too many, as threads that
    write to one cache line wait for each other.

    h: [B, E], the stream; x, sums: [members, B + 1, E]; query, context: [B, H * D]; key, value: [B, G * D];
    up, gate: [B, F]; lines: int32 and factors [members, N], rows that are read together and what
    they are multiplied by; weights: [members, room + 32]; turned: [members, 3, D]; logits: [B, V]. Of the
    predictor, scaled: [members, B, E], hidden: [depth, B, W], told, bent: [B, R], head_scores: [B, L * H],
    neuron_scores: [B, L * F], ranked: int32 [members, units].
    fill_heads: [L, H * D] and fill_neurons: [L, F], what dropped units say, and fill_bases: [2, L, E], what
    is read of all of them. Of weights in 8 and 4 bits alone, `states` has B lines of each member, sums are
    [members, B + 1, P], as `OutRows` says, places: int64 [members, 2, 40] and words: int32 [members, 32] are
    for them; clock: int64 [members, 16], cycles that `PARTS` of a token have taken.
    """

    h: np.ndarray
    x: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    context: np.ndarray
    sums: np.ndarray
    up: np.ndarray
    gate: np.ndarray
    lines: np.ndarray
    factors: np.ndarray
    weights: np.ndarray
    turned: np.ndarray
    scaled: np.ndarray
    hidden: np.ndarray
    told: np.ndarray
    bent: np.ndarray
    head_scores: np.ndarray
    neuron_scores: np.ndarray
    ranked: np.ndarray
    logits: np.ndarray
    fill_heads: np.ndarray
    fill_neurons: np.ndarray
    fill_bases: np.ndarray
    states: States
    places: np.ndarray
    words: np.ndarray
    clock: np.ndarray


@compiled(FAST)
def norm(weights, norms, layer, h, x):
    """h, x: [B, E]; x becomes the norm of h."""
    rows, width = h.shape
    for b in range(rows):
        mean = np.float32(0)
        if weights.sizes.centred:
            for e in range(width):
                mean += h[b, e]
            mean /= np.float32(width)
        square = np.float32(0)
        for e in range(width):
            square += (h[b, e] - mean) * (h[b, e] - mean)
        factor = np.float32(1 / math.sqrt(square / width + weights.sizes.epsilon))
        for e in range(width):
            x[b, e] = (h[b, e] - mean) * factor * norms.weight[layer, e] + norms.bias[layer, e]


@compiled(FAST)
def turn(source, b, begin, table, position, half, target):
    """target: [2 * half], the head's numbers of source[b] from `begin` on, turned to this position."""
    for d in range(half):
        cosine, sine = table[0, position, d], table[1, position, d]
        first, second = source[b, begin + d], source[b, begin + half + d]
        target[d] = first * cosine - second * sine
        target[half + d] = second * cosine + first * sine


@compiled(FAST)
def project(weights, layer, choice, memory, x, bench, member, members):
    """Queries of the heads that stay, keys and values of the key-value heads that are stored."""
    sizes = weights.sizes
    width, rows = sizes.head_width, bench.h.shape[0]
    kept = choice.counts[layer, HEADS] * width
    stored = 0 if memory.written.size > 0 else sizes.kv_heads * width
    heads, found, slot = choice.heads, choice.head_list, memory.slot  # see `step`
    queries, query_bias, query = weights.query, weights.query_bias, bench.query
    keys, key_bias, key = weights.key, weights.key_bias, bench.key
    values, value_bias, value = weights.value, weights.value_bias, bench.value
    lines = bench.lines[member]
    start, stop = share(kept, member, members)
    for begin in range(start, stop, CHUNK):
        for b in range(rows):
            count = 0
            for task in range(begin, min(begin + CHUNK, stop)):
                head = found[layer, task // width]
                if heads[b, layer, head]:
                    lines[count] = head * width + task % width
                    count += 1
            dots(x, b, queries, query_bias, layer, lines, count, query)
    start, stop = share(stored, member, members)
    for begin in range(start, stop, CHUNK):
        count = 0
        for row in range(begin, min(begin + CHUNK, stop)):
            if slot[layer, row // width] >= 0:
                lines[count] = row
                count += 1
        for b in range(rows):
            dots(x, b, keys, key_bias, layer, lines, count, key)
            dots(x, b, values, value_bias, layer, lines, count, value)


@compiled()
def wanted(choice, layer, b, group, share_of):
    """Whether a row needs this key-value head, which so many heads share."""
    return choice.heads[b, layer, group * share_of : (group + 1) * share_of].any()


@compiled(FAST)
def catch_up(weights, layer, choice, memory, x, position, bench, member, members):
    """With late keys: of the key-value heads that are needed now, compute what they have not computed yet."""
    sizes = weights.sizes
    rows, width = bench.h.shape[0], sizes.head_width
    flat, turned = memory.keys.reshape(1, -1), bench.turned[member, 0]
    start, stop = share(rows * sizes.kv_heads, member, members)
    room = memory.states.shape[2]
    for task in range(start, stop):
        b, group = task // sizes.kv_heads, task % sizes.kv_heads
        memory.written[layer, b, group, position] = False
        if not wanted(choice, layer, b, group, sizes.heads // sizes.kv_heads):
            continue
        base = memory.base[layer] + (b * memory.slots[layer] + memory.slot[layer, group]) * room * width
        for d in range(width):
            row = group * width + d
            for at in range(memory.start[b], position + 1):
                if memory.written[layer, b, group, at]:
                    continue
                if at == position:
                    key = dot(x, b, weights.key, layer, row)
                    value = dot(x, b, weights.value, layer, row)
                else:
                    key = dot(memory.states[layer, b], at, weights.key, layer, row)
                    value = dot(memory.states[layer, b], at, weights.value, layer, row)
                memory.keys[base + at * width + d] = key + weights.key_bias[layer, row]
                memory.values[base + at * width + d] = value + weights.value_bias[layer, row]
        for at in range(memory.start[b], position + 1):
            if memory.written[layer, b, group, at]:
                continue
            memory.written[layer, b, group, at] = True
            if sizes.rotary:
                line = base + at * width
                turn(flat, 0, line, memory.turns, at - memory.offset[b], width // 2, turned)
                for d in range(width):
                    memory.keys[line + d] = turned[d]


@compiled()
def remember(sizes, layer, memory, position, bench, member, members):
    """Put the new keys, turned, and values behind the others."""
    rows, width = bench.h.shape[0], sizes.head_width
    room = memory.turns.shape[1]
    keys, values, turns, offsets, slots = memory.keys, memory.values, memory.turns, memory.offset, memory.slot
    base, stored = memory.base[layer], memory.slots[layer]
    key, value, turned = bench.key, bench.value, bench.turned[member, 0]
    start, stop = share(rows * sizes.kv_heads, member, members)
    for task in range(start, stop):
        b, group = task // sizes.kv_heads, task % sizes.kv_heads
        slot = slots[layer, group]
        if slot < 0:
            continue
        line = base + ((b * stored + slot) * room + position) * width
        if sizes.rotary:
            turn(key, b, group * width, turns, position - offsets[b], width // 2, turned)
            for d in range(width):
                keys[line + d] = turned[d]
        else:
            for d in range(width):
                keys[line + d] = key[b, group * width + d]
        for d in range(width):
            values[line + d] = value[b, group * width + d]


@compiled(FAST)
def attend(weights, layer, choice, memory, position, bench, member, members):
    """Contexts of the heads that stay, over all positions up to this one."""
    sizes = weights.sizes
    rows, width = bench.h.shape[0], sizes.head_width
    room = memory.turns.shape[1]
    kept = choice.counts[layer, HEADS]
    start, stop = share(kept * rows, member, members)
    probabilities, said, query = bench.weights[member], bench.turned[member, 0], bench.turned[member, 1]
    heads, found, queries, context = choice.heads, choice.head_list, bench.query, bench.context
    keys, values, turns, slots = memory.keys, memory.values, memory.turns, memory.slot
    starts, offsets = memory.start, memory.offset
    base, stored = memory.base[layer], memory.slots[layer]
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
        line = base + (b * stored + slot) * room * width
        highest = np.float32(-np.inf)
        for at in range(first, position + 1):
            score = np.float32(0)
            for d in range(width):
                score += query[d] * keys[line + at * width + d]
            score *= np.float32(sizes.scaling)
            probabilities[at] = score
            highest = max(highest, score)
        total = np.float32(0)
        for at in range(first, position + 1):
            probabilities[at] = np.exp(probabilities[at] - highest)
            total += probabilities[at]
        for d in range(width):
            said[d] = np.float32(0)
        for at in range(first, position + 1):
            for d in range(width):
                said[d] += probabilities[at] * values[line + at * width + d]
        for d in range(width):
            context[b, head * width + d] = said[d] / total


@compiled(FAST)
def write_heads(weights, layer, choice, bench, member, members):
    """Add up what the heads that stay write, into this member's sums."""
    rows, width = bench.h.shape[0], weights.sizes.head_width
    start, stop = share(choice.counts[layer, HEADS] * width, member, members)
    heads, found, context, fill = choice.heads, choice.head_list, bench.context, bench.fill_heads
    sums, outputs = bench.sums[member], weights.output
    lines, factors = bench.lines[member], bench.factors[member]
    for begin in range(start, stop, CHUNK):
        for b in range(rows):
            count = 0
            for task in range(begin, min(begin + CHUNK, stop)):
                head = found[layer, task // width]
                if heads[b, layer, head]:
                    row = head * width + task % width
                    lines[count], factors[count] = row, context[b, row] - fill[layer, row]
                    count += 1
            adds(sums, b, factors, outputs, layer, lines, count)


@compiled(FAST)
def write_neurons(weights, layer, choice, x, bench, member, members):
    """What the neurons that stay read, say and write, into this member's sums."""
    rows = bench.h.shape[0]
    start, stop = share(choice.counts[layer, NEURONS], member, members)
    neurons, found, fill, sums = choice.neurons, choice.neuron_list, bench.fill_neurons, bench.sums[member]
    ups, gates, downs = weights.up, weights.gate, weights.down
    up_bias, gate_bias, gated = weights.up_bias, weights.gate_bias, weights.sizes.gated
    up, gate, lines, factors = bench.up, bench.gate, bench.lines[member], bench.factors[member]
    for begin in range(start, stop, CHUNK):
        for b in range(rows):
            count = 0
            for task in range(begin, min(begin + CHUNK, stop)):
                row = found[layer, task]
                if neurons[b, layer, row]:
                    lines[count] = row
                    count += 1
            dots(x, b, ups, up_bias, layer, lines, count, up)
            if gated:
                dots(x, b, gates, gate_bias, layer, lines, count, gate)
            speaking = 0
            for index in range(count):
                row = lines[index]
                said = up[b, row]
                if gated:
                    said *= gate[b, row] / (np.float32(1) + np.float32(math.exp(-gate[b, row])))
                else:
                    said = max(said, np.float32(0))
                said -= fill[layer, row]
                if said != 0:
                    lines[speaking], factors[speaking] = row, said
                    speaking += 1
            adds(sums, b, factors, downs, layer, lines, speaking)


@compiled(FAST)
def gather_sums(h, sums, base, bias, member, members):
    """Add all members' sums to the stream, in their order; base, bias: [E]."""
    start, stop = share(h.shape[1], member, members)
    for b in range(h.shape[0]):
        for e in range(start, stop):
            total = base[e] + bias[e]
            for other in range(members):
                total += sums[other, b, e]
            h[b, e] += total


@compiled()
def step(weights, nets, rule, choice, memory, bench, ids, real, position, board, member, members):
    """ids: int64 [B], the token at this position of each row -> bench.logits; real: bool [B], rows that count
    towards what was kept.

    In loops over rows nothing may be taken out of a tuple, nor a part of an array: each time would count a
    reference, which all threads write to.
    """
    sizes = weights.sizes
    rows = len(ids)
    units = (sizes.heads, sizes.neurons)
    h, x, sums = bench.h, bench.x[member], bench.sums[member]
    if member == 0:
        for b in range(rows):
            h[b] = 0
            bench.lines[member, 0], bench.factors[member, 0] = ids[b], 1
            adds(h, b, bench.factors[member], weights.embedding, 0, bench.lines[member], 1)
            if not sizes.rotary:
                h[b] += weights.positions[sizes.first + position - memory.offset[b]]
    meet(board, members)
    tap = 0
    for layer in range(sizes.layers):
        if tap < len(nets.taps) and nets.taps[tap, 0] == layer:
            score_tap(
                nets,
                tap,
                h,
                bench.scaled,
                bench.hidden,
                bench.told,
                bench.bent,
                bench.head_scores,
                bench.neuron_scores,
                bench.lines[member],
                units,
                board,
                member,
                members,
            )
            choose(
                rule, choice, bench.head_scores, bench.neuron_scores, nets.taps[tap, 1], nets.taps[tap, 2],
                bench.ranked, real, units, board, member, members,
            )  # fmt: skip
            tap += 1
        norm(weights, weights.attention_norm, layer, h, x)
        project(weights, layer, choice, memory, x, bench, member, members)
        if memory.written.size > 0:
            if member == 0:
                memory.states[layer, :, position] = x[:rows]
            catch_up(weights, layer, choice, memory, x, position, bench, member, members)
            meet(board, members)
        else:
            meet(board, members)
            remember(sizes, layer, memory, position, bench, member, members)
            meet(board, members)
        attend(weights, layer, choice, memory, position, bench, member, members)
        meet(board, members)
        sums[:] = 0
        write_heads(weights, layer, choice, bench, member, members)
        meet(board, members)
        bias = weights.output_bias[layer]
        gather_sums(h, bench.sums, bench.fill_bases[HEADS, layer], bias, member, members)
        meet(board, members)
        norm(weights, weights.neuron_norm, layer, h, x)
        sums[:] = 0
        write_neurons(weights, layer, choice, x, bench, member, members)
        meet(board, members)
        bias = weights.down_bias[layer]
        gather_sums(h, bench.sums, bench.fill_bases[NEURONS, layer], bias, member, members)
        meet(board, members)
    norm(weights, weights.last_norm, 0, h, x)
    start, stop = share(sizes.vocabulary, member, members)
    lines = bench.lines[member]
    dots_between(x, weights.vocabulary, weights.vocabulary_bias, 0, start, stop, lines, bench.logits, True)
    meet(board, members)
