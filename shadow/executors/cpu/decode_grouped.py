"""One new token for every row of a batch, from weights in 8 and 4 bits, in one compiled call."""

import math

import numpy as np

from shadow.executors.cpu.attention import LANES, attend_in_vectors
from shadow.executors.cpu.decode import attend, norm, remember
from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.row_dots import all_dots, dots_of_states, start_of
from shadow.executors.cpu.row_sums import add_rows
from shadow.executors.cpu.scoring import HEADS, NEURONS, choose, score_tap
from shadow.executors.cpu.states import quantise
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.team import meet, share
from shadow.executors.cpu.vectors import cycles
from shadow.executors.cpu.widen import widen_row
from shadow.plans.compiled import compiled

PARTS = (
    "norms and rounding",
    "scores",
    "queries, keys, values",
    "attention",
    "heads' output",
    "FFN",
    "lm_head",
)
NORMS, SCORES, PROJECTED, ATTENTION, OUTPUT_PART, FFN, VOCABULARY = range(7)
WIDE = 256  # rows that a batch reads before the next ones, so that all of its lines find them in a cache


@compiled()
def between_groups(found, layer, count, width, at):
    """The first place from `at` on where units, of so many rows each, begin another group of 32 rows."""
    while (
        0 < at < count
        and found[layer, at] * width // GROUP == (found[layer, at - 1] * width + width - 1) // GROUP
    ):
        at += 1
    return at


@compiled()
def project(weights, layer, choice, memory, bench, member, members):
    """Queries of the heads that stay, keys and values of the key-value heads that are stored."""
    sizes, states = weights.sizes, bench.states
    width, rows = sizes.head_width, bench.h.shape[0]
    kept = choice.counts[layer, HEADS] * width
    heads, found, slot = choice.heads, choice.head_list, memory.slot
    queries, query_bias, query = weights.query, weights.query_bias, bench.query
    keys, key_bias, key = weights.key, weights.key_bias, bench.key
    values, value_bias, value = weights.value, weights.value_bias, bench.value
    lines, first, outputs = bench.lines[member], member * rows, weights.output
    wide = WIDE if rows > 1 else len(lines)
    start, stop = share(kept, member, members)
    for begin in range(start, stop, wide):
        for b in range(rows):
            count = 0
            for task in range(begin, min(begin + wide, stop)):
                head = found[layer, task // width]
                if heads[b, layer, head]:
                    lines[count] = head * width + task % width
                    count += 1
            dots_of_states(
                states, first + b, queries, query_bias, layer, lines, count, query, b, start_of(keys, layer)
            )
    start, stop = share(sizes.kv_heads * width, member, members)
    for begin in range(start, stop, wide):
        count = 0
        for row in range(begin, min(begin + wide, stop)):
            if slot[layer, row // width] >= 0:
                lines[count] = row
                count += 1
        for b in range(rows):
            dots_of_states(
                states, first + b, keys, key_bias, layer, lines, count, key, b, start_of(values, layer)
            )
            dots_of_states(
                states, first + b, values, value_bias, layer, lines, count, value, b, start_of(outputs, layer)
            )


@compiled()
def write_heads(weights, layer, choice, bench, member, members):
    """Add up what the heads that stay write, into this member's sums."""
    rows, width = bench.h.shape[0], weights.sizes.head_width
    heads, found, context, fill = choice.heads, choice.head_list, bench.context, bench.fill_heads
    sums, outputs, blocks = bench.sums[member], weights.output, weights.output.blocks
    lines, factors = bench.lines[member], bench.factors[member]
    places, words, counted = bench.places[member], bench.words[member], choice.counts[layer, HEADS]
    follow, exact = start_of(weights.up, layer), bench.states.exact
    start, stop = share(counted, member, members)
    begin = between_groups(found, layer, counted, width, start)
    stop = between_groups(found, layer, counted, width, stop)
    while begin < stop:
        end = between_groups(
            found, layer, counted, width, min(stop, begin + (max(1, WIDE // width) if rows > 1 else counted))
        )
        for b in range(rows):
            count = 0
            for task in range(begin, end):
                head = found[layer, task]
                if heads[b, layer, head]:
                    for row in range(head * width, head * width + width):
                        lines[count], factors[count] = row, context[b, row] - fill[layer, row]
                        count += 1
            add_rows(sums, b, factors, outputs, layer, lines, count, places, words, 0, blocks, follow, exact)
        begin = end


@compiled(FAST)
def say(up, gate, gated, b, row):
    """What a neuron says."""
    if gated:
        return up[b, row] * (gate[b, row] / (np.float32(1) + np.float32(math.exp(-gate[b, row]))))
    return max(up[b, row], np.float32(0))


@compiled()
def write_neurons(weights, layer, choice, bench, member, members):
    """What the neurons that stay read, say and write, into this member's sums."""
    rows = bench.h.shape[0]
    neurons, found, fill, sums = choice.neurons, choice.neuron_list, bench.fill_neurons, bench.sums[member]
    ups, gates, downs, blocks = weights.up, weights.gate, weights.down, weights.down.blocks
    up_bias, gate_bias, gated = weights.up_bias, weights.gate_bias, weights.sizes.gated
    up, gate, lines, factors = bench.up, bench.gate, bench.lines[member], bench.factors[member]
    exact = bench.states.exact
    states, first, counted = bench.states, member * rows, choice.counts[layer, NEURONS]
    places, words = bench.places[member], bench.words[member]
    after = start_of(gates, layer) if gated else start_of(downs, layer)
    further = layer + 1 < weights.sizes.layers
    follow = start_of(weights.query, layer + 1) if further else start_of(weights.vocabulary, 0)
    start, stop = share(counted, member, members)
    begin = between_groups(found, layer, counted, 1, start)
    stop = between_groups(found, layer, counted, 1, stop)
    while begin < stop:
        end = between_groups(found, layer, counted, 1, min(stop, begin + (WIDE if rows > 1 else counted)))
        for b in range(rows):
            count = 0
            for task in range(begin, end):
                row = found[layer, task]
                if neurons[b, layer, row]:
                    lines[count] = row
                    count += 1
            dots_of_states(
                states,
                first + b,
                ups,
                up_bias,
                layer,
                lines,
                count,
                up,
                b,
                after,
            )
            if gated:
                dots_of_states(
                    states, first + b, gates, gate_bias, layer, lines, count, gate, b, start_of(downs, layer)
                )
            for index in range(count):
                row = lines[index]
                factors[index] = say(up, gate, gated, b, row) - fill[layer, row]
            add_rows(sums, b, factors, downs, layer, lines, count, places, words, 0, blocks, follow, exact)
        begin = end


@compiled(FAST)
def gather_sums(h, sums, column, base, bias, member, members):
    """Add all members' sums to the stream, in their order, and empty the own; base, bias: [E]."""
    start, stop = share(h.shape[1], member, members)
    for b in range(h.shape[0]):
        for e in range(start, stop):
            found = base[e] + bias[e]
            for other in range(members):
                found += sums[other, b, column[e]]
            h[b, e] += found


@compiled()
def round_states(x, width, states, member):
    """x: [B + 1, E] of this member."""
    for b in range(len(x) - 1):
        quantise(x, b, width, states, member * (len(x) - 1) + b)


@compiled()
def ticked(clock, part, then):
    """Add the cycles since then to a part's; -> now."""
    now = cycles()
    clock[part] += now - then
    return now


@compiled()
def step_grouped(weights, nets, rule, choice, memory, bench, ids, real, position, board, member, members):
    """As `shadow.executors.cpu.decode.step`, whose keys are never late here."""
    sizes = weights.sizes
    rows, width = len(ids), sizes.width
    units = (sizes.heads, sizes.neurons)
    h, x, sums, states = bench.h, bench.x[member], bench.sums[member], bench.states
    clock, then = bench.clock[member], cycles()
    if member == 0:
        for b in range(rows):
            widen_row(weights.embedding, 0, ids[b], h, b)
            if not sizes.rotary:
                h[b] += weights.positions[sizes.first + position - memory.offset[b]]
    meet(board, members)
    then = ticked(clock, NORMS, then)
    tap = 0
    for layer in range(sizes.layers):
        if tap < len(nets.taps) and nets.taps[tap, 0] == layer:
            score_tap(
                nets, tap, h, bench.scaled, bench.hidden, bench.told, bench.bent, bench.head_scores,
                bench.neuron_scores, bench.lines[member], units, board, member, members,
            )  # fmt: skip
            choose(
                rule, choice, bench.head_scores, bench.neuron_scores, nets.taps[tap, 1], nets.taps[tap, 2],
                bench.ranked, real, units, board, member, members,
            )  # fmt: skip
            tap += 1
            then = ticked(clock, SCORES, then)
        norm(weights, weights.attention_norm, layer, h, x)
        round_states(x, width, states, member)
        then = ticked(clock, NORMS, then)
        project(weights, layer, choice, memory, bench, member, members)
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
        sums[:] = 0
        write_heads(weights, layer, choice, bench, member, members)
        meet(board, members)
        then = ticked(clock, OUTPUT_PART, then)
        bias = weights.output_bias[layer]
        gather_sums(
            h, bench.sums, weights.output.column, bench.fill_bases[HEADS, layer], bias, member, members
        )
        meet(board, members)
        norm(weights, weights.neuron_norm, layer, h, x)
        round_states(x, width, states, member)
        sums[:] = 0
        then = ticked(clock, NORMS, then)
        write_neurons(weights, layer, choice, bench, member, members)
        meet(board, members)
        then = ticked(clock, FFN, then)
        bias = weights.down_bias[layer]
        gather_sums(
            h, bench.sums, weights.down.column, bench.fill_bases[NEURONS, layer], bias, member, members
        )
        meet(board, members)
        then = ticked(clock, NORMS, then)
    norm(weights, weights.last_norm, 0, h, x)
    round_states(x, width, states, member)
    start, stop = share(sizes.vocabulary, member, members)
    for b in range(rows):
        all_dots(
            states,
            member * rows + b,
            weights.vocabulary,
            weights.vocabulary_bias,
            0,
            start,
            stop,
            bench.logits,
            b,
        )
    meet(board, members)
    ticked(clock, VOCABULARY, then)
