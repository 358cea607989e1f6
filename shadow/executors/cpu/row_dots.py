"""Products of rows in 8 and 4 bits with states, as whole numbers."""

import numpy as np

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.vectors import (
    add_products,
    add_wide_products,
    address_of,
    as_floats,
    four0,
    four1,
    four2,
    four3,
    fused,
    high,
    low,
    no_floats,
    no_ints,
    prefetch,
    read_bytes,
    read_floats,
    read_kept_halves,
    times,
    total,
)
from shadow.executors.cpu.widen import widen_row
from shadow.plans.compiled import compiled

AHEAD = 4  # rows between the one that is read and the one that is fetched


@compiled()
def start_of(rows, layer):
    """The address of a layer's first row."""
    return address_of(rows.records) + layer * rows.rows * rows.stride


@compiled()
def of_four(record, codes, scales, sums):
    """sums + the products of four groups in 4 bits; scales: of each group four times."""
    both = read_bytes(record)
    found = add_products(no_ints(), low(both), read_bytes(codes))
    found = add_products(found, high(both), read_bytes(codes + 64))
    return fused(as_floats(found), scales, sums)


@compiled()
def row_in_four(record, ahead, codes, scale, totals, mask, groups):
    """The product of the row at this address with the states at the others; ahead: a row to be fetched."""
    scales_at, sums, minima = record + groups * 16, no_floats(), no_floats()
    for group in range(0, groups, 16):
        stored = scales_at + group * 2
        found = times(read_kept_halves(stored, mask + group * 2), read_floats(scale + group * 4))
        minimum = read_kept_halves(stored + groups * 2, mask + group * 2)
        minima = fused(minimum, read_floats(totals + group * 4), minima)
        here, place, there = record + group * 16, codes + group * GROUP, ahead + group * 16
        prefetch(there)
        sums = of_four(here, place, four0(found), sums)
        if group + 4 < groups:
            prefetch(there + 64)
            sums = of_four(here + 64, place + 128, four1(found), sums)
        if group + 8 < groups:
            prefetch(there + 128)
            sums = of_four(here + 128, place + 256, four2(found), sums)
        if group + 12 < groups:
            prefetch(there + 192)
            sums = of_four(here + 192, place + 384, four3(found), sums)
    prefetch(ahead + groups * 16)
    return total(sums) + total(minima)


@compiled()
def of_eight(record, half, codes, scales, sums):
    """As `of_four`; half: bytes between the groups' first codes and their last."""
    found = add_wide_products(no_ints(), read_bytes(record), read_bytes(codes))
    found = add_wide_products(found, read_bytes(record + half), read_bytes(codes + 64))
    return fused(as_floats(found), scales, sums)


@compiled()
def row_in_eight(record, ahead, codes, scale, totals, mask, groups):
    """As `row_in_four`."""
    scales_at, sums, minima = record + groups * GROUP, no_floats(), no_floats()
    for group in range(0, groups, 16):
        stored = read_kept_halves(scales_at + group * 2, mask + group * 2)
        found = times(stored, read_floats(scale + group * 4))
        minima = fused(stored, read_floats(totals + group * 4), minima)
        here, place, rest = record + group * GROUP, codes + group * GROUP, groups - group
        for line in range(0, min(16, rest) * GROUP, 64):
            prefetch(ahead + group * GROUP + line)
        sums = of_eight(here, min(64, 16 * rest), place, four0(found), sums)
        if rest > 4:
            sums = of_eight(here + 128, min(64, 16 * rest - 64), place + 128, four1(found), sums)
        if rest > 8:
            sums = of_eight(here + 256, min(64, 16 * rest - 128), place + 256, four2(found), sums)
        if rest > 12:
            sums = of_eight(here + 384, min(64, 16 * rest - 192), place + 384, four3(found), sums)
    return total(sums) - np.float32(128) * total(minima)


@compiled(FAST)
def exact_dot(numbers, line, rows, layer, row):
    """Of numbers that are not rounded: slow."""
    wide = np.empty((1, rows.width), np.float32)
    widen_row(rows, layer, row, wide, 0)
    found = np.float32(0)
    for e in range(rows.width):
        found += wide[0, e] * numbers[line, e]
    return found


@compiled()
def dots_of_states(states, line, rows, bias, layer, lines, count, out, b, follow):
    """Line b of `out`: [B, R] becomes, at the first `count` of `lines`, these rows' products with a line of
    the states, plus the bias: [L, R]. lines: int32; follow: the address that will be read next."""
    if states.exact:
        for index in range(count):
            row = lines[index]
            out[b, row] = exact_dot(states.numbers, line, rows, layer, row) + bias[layer, row]
        return
    bits, stride, groups, begin = rows.bits, rows.stride, rows.groups, layer * rows.rows
    start, mask = address_of(rows.records) + begin * stride, address_of(states.mask)
    codes = address_of(states.codes) + line * states.length[0]
    scale = address_of(states.scale) + line * states.length[1] * 4
    totals = address_of(states.total) + line * states.length[1] * 4
    for index in range(count):
        row, later = lines[index], index + AHEAD
        at = start + row * stride
        ahead = start + lines[later] * stride if later < count else follow + (later - count) * stride
        if bits == 4:
            found = row_in_four(at, ahead, codes, scale, totals, mask, groups)
        else:
            found = row_in_eight(at, ahead, codes, scale, totals, mask, groups)
        out[b, row] = found + bias[layer, row]


@compiled()
def all_dots(states, line, rows, bias, layer, start, stop, out, b):
    """`dots_of_states` of the rows from `start` up to `stop`."""
    if states.exact:
        for row in range(start, stop):
            out[b, row] = exact_dot(states.numbers, line, rows, layer, row) + bias[layer, row]
        return
    bits, stride, groups, begin = rows.bits, rows.stride, rows.groups, layer * rows.rows
    first, mask = address_of(rows.records) + begin * stride, address_of(states.mask)
    codes = address_of(states.codes) + line * states.length[0]
    scale = address_of(states.scale) + line * states.length[1] * 4
    totals = address_of(states.total) + line * states.length[1] * 4
    for row in range(start, stop):
        at = first + row * stride
        ahead = at + AHEAD * stride
        if bits == 4:
            found = row_in_four(at, ahead, codes, scale, totals, mask, groups)
        else:
            found = row_in_eight(at, ahead, codes, scale, totals, mask, groups)
        out[b, row] = found + bias[layer, row]
