"""Rows in 8 and 4 bits as float32."""

import numpy as np

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.vectors import address_of, read_halves, store_floats
from shadow.plans.compiled import compiled


@compiled()
def widen_row(rows, layer, line, out, to):
    """Line `to` of out: float32 [N, E] becomes this row."""
    records, bits, groups = rows.records, rows.bits, rows.groups
    halves = np.zeros(16, np.float32)
    start, room = address_of(records), address_of(halves)
    code_bytes = groups * GROUP * bits // 8
    at = (layer * rows.rows + line) * rows.stride
    for group in range(groups):
        store_floats(room, read_halves(start + at + code_bytes + 2 * group))
        scale, minimum = halves[0], np.float32(0)
        if bits == 4:
            store_floats(room, read_halves(start + at + code_bytes + 2 * (groups + group)))
            minimum = halves[0]
        block = group // 4 * 4
        lanes = min(4, groups - block)
        for e in range(min(GROUP, rows.width - group * GROUP)):
            if bits == 4:
                both = records[at + group * 16 + e % 16]
                code = both >> 4 if e >= 16 else both & 15
                out[to, group * GROUP + e] = scale * np.float32(code) + minimum
            else:
                place = block * GROUP + e // 16 * lanes * 16 + (group - block) * 16 + e % 16
                out[to, group * GROUP + e] = scale * np.float32(np.int64(records[at + place]) - 128)


@compiled()
def widen_in(rows, layer, lines, out):
    """out: float32 [lines, E]"""
    for index in range(len(lines)):
        widen_row(rows, layer, lines[index], out, index)


@compiled()
def widen_out(rows, layer, lines, out):
    """out: float32 [lines, E]"""
    records, grids, bits, column = rows.records, rows.grids, rows.bits, rows.column
    size = VECTOR // bits
    below = rows.blocks * size * 2
    each = below * (2 if bits == 4 else 1)
    halves = np.zeros(16, np.float32)
    start, room = address_of(grids), address_of(halves)
    for index in range(len(lines)):
        group = rows.unit[layer, lines[index]] // GROUP
        at = (layer * rows.rows + lines[index]) * rows.stride
        grid = (layer * -(-rows.rows // GROUP) + group) * each
        for e in range(rows.width):
            place = column[e]
            store_floats(room, read_halves(start + grid + 2 * place))
            scale = halves[0]
            part, rest = place % size // 32, place % 32
            byte = at + place // size * 64 + rest // 8 * 16 + part % 2 * 8 + rest % 8
            if bits == 4:
                store_floats(room, read_halves(start + grid + below + 2 * place))
                code = records[byte] >> 4 if part >= 2 else records[byte] & 15
                out[index, e] = scale * np.float32(code) + halves[0]
            else:
                out[index, e] = scale * np.float32(np.int64(records[byte]) - 128)
