"""Many positions of a batch, from rows of heads and neurons in 8 and 4 bits, in one compiled call."""

from typing import NamedTuple

import numpy as np

from shadow.executors.cpu.at_position import embed, remember_at, say_at
from shadow.executors.cpu.block_attention import attend_from
from shadow.executors.cpu.blocks import add_rounded, in_panels, multiply_panels, multiply_rounded
from shadow.executors.cpu.decode import norm
from shadow.executors.cpu.panels import TOGETHER
from shadow.executors.cpu.scoring import HEADS, NEURONS, choose, score_tap
from shadow.executors.cpu.states import quantise
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.team import meet, share
from shadow.plans.compiled import compiled

FEW = 0.75  # share of the neurons up to which they are read by their numbers, and put in their places


class Spoken(NamedTuple):
    """What dropped units say, float32: heads [L, H * D], neurons [L, F]; and bases [2, L, E], what is read of
    them all."""

    heads: np.ndarray
    neurons: np.ndarray
    bases: np.ndarray


class Scored(NamedTuple):
    """Room for N positions to be scored in, as in `Bench`. every: int32, the numbers of all rows of a
    matrix; attend: bool [members, H], heads that stay anywhere."""

    scaled: np.ndarray
    hidden: np.ndarray
    told: np.ndarray
    bent: np.ndarray
    head_scores: np.ndarray
    neuron_scores: np.ndarray
    ranked: np.ndarray
    lines: np.ndarray
    every: np.ndarray
    attend: np.ndarray


@compiled()
def project(weights, layer, choice, at, every, count, room, member, members):
    """Queries of the heads that stay anywhere, keys and values of all. at: where the choice has this layer.
    -> where keys and values begin in the lines of y: panels write whole ones."""
    sizes, states, panels, y = weights.sizes, room.of_width, room.panels, room.y
    width, kept = sizes.head_width, choice.counts[at, HEADS]
    queries, stored = every[: sizes.heads * width], every[: sizes.kv_heads * width]
    if kept == sizes.heads or width % TOGETHER > 0:
        multiply_rounded(weights.query, layer, queries, count, states, panels, y, 0, member, members)
    else:
        each = width // TOGETHER
        start, stop = share(kept * each, member, members)
        for task in range(start, stop):
            panel = choice.head_list[at, task // each] * each + task % each
            multiply_panels(
                weights.query, layer, queries, panel, panel + 1, count, states, panels, y, 0, member
            )
    first = in_panels(len(queries))
    behind = first + in_panels(len(stored))
    multiply_rounded(weights.key, layer, stored, count, states, panels, y, first, member, members)
    multiply_rounded(weights.value, layer, stored, count, states, panels, y, behind, member, members)
    return first, behind


@compiled(FAST)
def add_biases(y, position, start, bias, layer):
    """To a line of y, from `start` on."""
    for n in range(bias.shape[1]):
        y[position, start + n] += bias[layer, n]


@compiled(FAST)
def without_heads(context, position, sizes, layer, keep, line, at, fill):
    """Of a position's context what is read by the heads' outputs; keep: bool [lines, S, H]."""
    width = sizes.head_width
    for head in range(sizes.heads):
        first = head * width
        if keep[line, at, head]:
            for d in range(first, first + width):
                context[position, d] -= fill[layer, d]
        else:
            for d in range(first, first + width):
                context[position, d] = 0


@compiled(FAST)
def without_neurons(said, position, layer, keep, line, at, fill):
    """Of what neurons say what is read; keep: bool [lines, S, F]."""
    for f in range(said.shape[1]):
        found = said[position, f] - fill[layer, f]
        said[position, f] = found if keep[line, at, f] else np.float32(0)


@compiled(FAST)
def put_said(y, position, numbers, many, layer, keep, line, at, fill, said):
    """What some neurons say, in a line of y one beside the other, into their places."""
    for f in range(said.shape[1]):
        said[position, f] = 0
    for index in range(many):
        f = numbers[index]
        if keep[line, at, f]:
            said[position, f] = y[position, index] - fill[layer, f]


@compiled()
def speak(weights, layer, choice, at, each, every, spoken, count, room, board, member, members):
    """What the neurons that stay say at all positions, rounded."""
    sizes, states, panels, y, said = weights.sizes, room.of_width, room.panels, room.y, room.said
    many, numbers, keep = choice.counts[at, NEURONS], choice.neuron_list[at], choice.neurons
    few = many < FEW * sizes.neurons
    lines = numbers[:many] if few else every[: sizes.neurons]
    behind = in_panels(len(lines)) if sizes.gated else 0
    if sizes.gated:
        multiply_rounded(weights.gate, layer, lines, count, states, panels, y, 0, member, members)
    multiply_rounded(weights.up, layer, lines, count, states, panels, y, behind, member, members)
    meet(board, members)
    start, stop = share(count, member, members)
    for position in range(start, stop):
        line = position // each
        if few:
            for index in range(many):
                y[position, behind + index] += weights.up_bias[layer, numbers[index]]
                if sizes.gated:
                    y[position, index] += weights.gate_bias[layer, numbers[index]]
            say_at(y, position, sizes.gated, behind, many, y)
            put_said(y, position, numbers, many, layer, keep, line, at, spoken.neurons, said)
        else:
            add_biases(y, position, behind, weights.up_bias, layer)
            if sizes.gated:
                add_biases(y, position, 0, weights.gate_bias, layer)
            say_at(y, position, sizes.gated, behind, sizes.neurons, said)
            without_neurons(said, position, layer, keep, line, at, spoken.neurons)
        quantise(said, position, sizes.neurons, room.of_neurons, position)


@compiled(FAST)
def add_to_stream(h, y, start, stop, layer, bias, base):
    """To each of some positions; bias, base: [L, E]."""
    for position in range(start, stop):
        for e in range(h.shape[1]):
            h[position, e] += y[position, e] + bias[layer, e] + base[layer, e]


@compiled()
def norm_and_round(weights, norms, layer, room, start, stop):
    """The stream at some positions."""
    norm(weights, norms, layer, room.h[start:stop], room.x[start:stop])
    for position in range(start, stop):
        quantise(room.x, position, weights.sizes.width, room.of_width, position)


@compiled()
def pass_rows(
    weights, nets, rule, choice, each, spoken, scored, room, memory, ids, real, first, last, before, board,
    member, members,
):  # fmt: skip
    """ids: int64 [B, T] behind so many columns, through the layers from `first` up to `last`; behind the last
    one room.x becomes the last norm's output. choice: of these layers, a line for so many positions; with
    nets, which choose for all layers, one for each. real: bool [B * T], positions that count.
    The memory has room for the columns."""
    sizes = weights.sizes
    tokens, count, inner = ids.shape[1], ids.size, sizes.heads * sizes.head_width
    units, every, attend = (sizes.heads, sizes.neurons), scored.every, scored.attend[member]
    h, y, context, panels, turned = room.h, room.y, room.context, room.panels, room.turned[member]
    start, stop = share(count, member, members)
    if first == 0:
        embed(weights, memory, ids, before, h, start, stop)
    tap = 0
    for layer in range(first, last):
        at = layer - first
        if tap < len(nets.taps) and nets.taps[tap, 0] == layer:
            meet(board, members)
            score_tap(
                nets, tap, h, scored.scaled, scored.hidden, scored.told, scored.bent, scored.head_scores,
                scored.neuron_scores, scored.lines[member], units, board, member, members,
            )  # fmt: skip
            choose(
                rule, choice, scored.head_scores, scored.neuron_scores, nets.taps[tap, 1], nets.taps[tap, 2],
                scored.ranked, real, units, board, member, members,
            )  # fmt: skip
            tap += 1
        norm_and_round(weights, weights.attention_norm, layer, room, start, stop)
        meet(board, members)
        keys, values = project(weights, layer, choice, at, every, count, room, member, members)
        meet(board, members)
        for position in range(start, stop):
            add_biases(y, position, 0, weights.query_bias, layer)
            add_biases(y, position, keys, weights.key_bias, layer)
            add_biases(y, position, values, weights.value_bias, layer)
            b, column = position // tokens, before + position % tokens
            remember_at(sizes, layer, memory, y, position, b, column, keys, values, turned)
        attend[:] = False
        for index in range(choice.counts[at, HEADS]):
            attend[choice.head_list[at, index]] = True
        meet(board, members)
        attend_from(sizes, layer, memory, y, tokens, before, attend, context, room, member, members)
        meet(board, members)
        for position in range(start, stop):
            line = position // each
            without_heads(context, position, sizes, layer, choice.heads, line, at, spoken.heads)
            quantise(context, position, inner, room.of_heads, position)
        meet(board, members)
        add_rounded(weights.output, layer, count, room.of_heads, panels, y, member, members)
        meet(board, members)
        add_to_stream(h, y, start, stop, layer, weights.output_bias, spoken.bases[HEADS])
        norm_and_round(weights, weights.neuron_norm, layer, room, start, stop)
        meet(board, members)
        speak(weights, layer, choice, at, each, every, spoken, count, room, board, member, members)
        meet(board, members)
        add_rounded(weights.down, layer, count, room.of_neurons, panels, y, member, members)
        meet(board, members)
        add_to_stream(h, y, start, stop, layer, weights.down_bias, spoken.bases[NEURONS])
    if last == sizes.layers:
        norm(weights, weights.last_norm, 0, h[start:stop], room.x[start:stop])
