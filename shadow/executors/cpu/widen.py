"""Rows in 8 and 4 bits as float32."""

import numpy as np

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.vectors import (
    address_of,
    as_floats,
    below_128,
    everywhere,
    fused,
    high_of,
    low_of,
    no_floats,
    read_half,
    read_halves,
    read_sixteen,
    read_two_eights,
    store_floats,
)
from shadow.plans.compiled import compiled

LANES = 16  # numbers of a vector


@compiled()
def widen_group(record, group, groups, bits, out):
    """out: the address of 32 float32, which become the numbers of a group of the row at this address."""
    scales = record + groups * GROUP * bits // 8
    scale, minimum = everywhere(read_half(scales + 2 * group)), no_floats()
    if bits == 4:
        minimum = everywhere(read_half(scales + 2 * (groups + group)))
        both = read_sixteen(record + group * 16)
        first, last = low_of(both), high_of(both)
    else:
        block = group // 4 * 4
        here = record + block * GROUP + (group - block) * 16
        first = below_128(read_sixteen(here))
        last = below_128(read_sixteen(here + 16 * min(4, groups - block)))
    store_floats(out, fused(as_floats(first), scale, minimum))
    store_floats(out + LANES * 4, fused(as_floats(last), scale, minimum))


@compiled()
def widen_row(rows, layer, line, out, to):
    """Line `to` of out: float32 [N, E] becomes this row."""
    bits, groups, width = rows.bits, rows.groups, rows.width
    record = address_of(rows.records) + (layer * rows.rows + line) * rows.stride
    place = address_of(out) + to * out.shape[1] * 4
    full = width // GROUP
    for group in range(full):
        widen_group(record, group, groups, bits, place + group * GROUP * 4)
    if full < groups:
        rest = np.empty(GROUP, np.float32)
        widen_group(record, full, groups, bits, address_of(rest))
        for e in range(full * GROUP, width):
            out[to, e] = rest[e - full * GROUP]


@compiled()
def widen_in(rows, layer, lines, out):
    """out: float32 [lines, E]"""
    for index in range(len(lines)):
        widen_row(rows, layer, lines[index], out, index)


@compiled()
def widen_out(rows, layer, lines, out):
    """out: float32 [lines, E]"""
    bits, column, unit, width = rows.bits, rows.column, rows.unit, rows.width
    size = VECTOR // bits
    below = rows.blocks * size * 2
    each = below * (2 if bits == 4 else 1)
    wide = np.empty(rows.blocks * size, np.float32)
    to, records, grids = address_of(wide), address_of(rows.records), address_of(rows.grids)
    for index in range(len(lines)):
        group = unit[layer, lines[index]] // GROUP
        record = records + (layer * rows.rows + lines[index]) * rows.stride
        grid = grids + (layer * -(-rows.rows // GROUP) + group) * each
        for place in range(0, rows.blocks * size, LANES):
            part, rest = place % size // GROUP, place % GROUP
            codes = read_two_eights(record + place // size * 64 + rest * 2 + part % 2 * 8)
            scale, minimum = read_halves(grid + 2 * place), no_floats()
            if bits == 4:
                codes = high_of(codes) if part >= 2 else low_of(codes)
                minimum = read_halves(grid + below + 2 * place)
            else:
                codes = below_128(codes)
            store_floats(to + place * 4, fused(as_floats(codes), scale, minimum))
        for e in range(width):
            out[index, e] = wide[column[e]]
