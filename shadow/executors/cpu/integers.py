"""Products of whole numbers: rows with states, and sums of rows."""

import numpy as np

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.vectors import (
    add_ints,
    add_products,
    add_shorts,
    add_wide_products,
    address_of,
    as_floats,
    everywhere,
    first_half,
    four0,
    four1,
    four2,
    four3,
    fused,
    high,
    last_half,
    low,
    no_floats,
    no_ints,
    no_shorts,
    pair_up,
    prefetch,
    read_bytes,
    read_everywhere,
    read_floats,
    read_halves,
    read_kept_halves,
    read_place,
    sixteenfold,
    store_floats,
    times,
    total,
    woven_first,
    woven_last,
)
from shadow.executors.cpu.widen import widen_out, widen_row
from shadow.plans.compiled import compiled

AHEAD = 4  # rows between the one that is read and the one that is fetched
PAIRS = 16  # rows whose products with 4 bits surely fit 16 bits: 15 * 127 * 16 = 30,480


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


@compiled(FAST)
def add_exactly(y, b, factors, rows, layer, lines, count, first, last):
    """As `add_rows`, of factors that are not rounded: slow."""
    wide, one = np.empty((1, rows.width), np.float32), np.empty(1, np.int64)
    size = VECTOR // rows.bits
    for index in range(count):
        one[0] = lines[index]
        widen_out(rows, layer, one, wide)
        for e in range(first * size, min(rows.width, last * size)):
            y[b, rows.column[e]] += factors[index] * wide[0, e]


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


@compiled()
def write(y, products, grid, below, scale, added):
    """16 outputs += products * scale * the grid's scales + added * its minima, which stand so far below."""
    found = fused(times(as_floats(products), scale), read_halves(grid), read_floats(y))
    store_floats(y, fused(added, read_halves(grid + below), found))


@compiled()
def add_group(y, codes, grid, below, each, bits, words, places, ahead, count, scale, added, first, last):
    """Outputs at address y += `count` (even) of 32 neighbouring rows, each times its factor.

    codes: where rows begin, and places: int64, how far behind, as `ahead`, of rows to be fetched; grid: of
    these rows, whose minima stand `below` behind its scales, the next ones `each`; words: int32, of each two
    rows their factors' codes, twice, as bytes; scale: of the codes; added: what minima are multiplied with;
    first, last: the vectors that are written.
    """
    size = VECTOR // bits
    scales, sums = everywhere(np.float32(scale)), everywhere(np.float32(added))
    for block in range(first, last):
        i0, i1, i2, i3 = no_ints(), no_ints(), no_ints(), no_ints()
        i4, i5, i6, i7 = no_ints(), no_ints(), no_ints(), no_ints()
        here = codes + block * 64
        for begin in range(0, count, PAIRS):
            s0, s1, s2, s3 = no_shorts(), no_shorts(), no_shorts(), no_shorts()
            for index in range(begin, min(begin + PAIRS, count), 2):
                one = read_bytes(here + read_place(places + index * 8))
                other = read_bytes(here + read_place(places + index * 8 + 8))
                factors = read_everywhere(words + index * 2)
                prefetch(here + read_place(ahead + index * 8))
                prefetch(here + read_place(ahead + index * 8 + 8))
                s0 = add_shorts(s0, pair_up(woven_first(low(one), low(other)), factors))
                s1 = add_shorts(s1, pair_up(woven_last(low(one), low(other)), factors))
                s2 = add_shorts(s2, pair_up(woven_first(high(one), high(other)), factors))
                s3 = add_shorts(s3, pair_up(woven_last(high(one), high(other)), factors))
            i0, i1 = add_ints(i0, first_half(s0)), add_ints(i1, last_half(s0))
            i2, i3 = add_ints(i2, first_half(s1)), add_ints(i3, last_half(s1))
            i4, i5 = add_ints(i4, first_half(s2)), add_ints(i5, last_half(s2))
            i6, i7 = add_ints(i6, first_half(s3)), add_ints(i7, last_half(s3))
        to, of = y + block * size * 4, grid + block * size * 2
        for line in range(0, size * 2, 64):
            prefetch(of + line + each)
            if bits == 4:
                prefetch(of + line + each + below)
        if bits == 8:
            i0, i1 = add_ints(i0, sixteenfold(i4)), add_ints(i1, sixteenfold(i5))
            i2, i3 = add_ints(i2, sixteenfold(i6)), add_ints(i3, sixteenfold(i7))
        write(to, i0, of, below, scales, sums)
        write(to + 64, i1, of + 32, below, scales, sums)
        write(to + 128, i2, of + 64, below, scales, sums)
        write(to + 192, i3, of + 96, below, scales, sums)
        if bits == 4:
            write(to + 256, i4, of + 128, below, scales, sums)
            write(to + 320, i5, of + 160, below, scales, sums)
            write(to + 384, i6, of + 192, below, scales, sums)
            write(to + 448, i7, of + 224, below, scales, sums)


@compiled()
def add_rows(y, b, factors, rows, layer, lines, count, places, words, first, last, follow, exact):
    """y: float32 [B, P], line b += the first `count` of `lines`, which rise, each times its factor.

    Factors are rounded to 8 bits by 32 neighbours. places: int64 [2, 34] and words: int32 [17] are for work;
    follow: as in `dots_of_states`; exact: factors are not rounded.
    """
    if exact:
        add_exactly(y, b, factors, rows, layer, lines, count, first, last)
        return
    unit, stride, bits = rows.unit, rows.stride, rows.bits
    size = rows.blocks * VECTOR // bits * 2
    each, below = (2 * size, size) if bits == 4 else (size, 0)
    codes = address_of(rows.records) + layer * rows.rows * stride
    grids = address_of(rows.grids) + layer * -(-rows.rows // GROUP) * each
    to, places_at, words_at = address_of(y) + b * y.shape[1] * 4, address_of(places), address_of(words)
    ahead_at = places_at + places.shape[1] * 8
    index = 0
    while index < count:
        group = unit[layer, lines[index]] // GROUP
        stop, most = index, np.float32(0)
        while stop < count and unit[layer, lines[stop]] // GROUP == group:
            most = max(most, abs(factors[stop]))
            stop += 1
        if most > 0:
            inverse, found, added = np.float32(127) / most, 0, 0
            for number in range(index, stop):
                code = np.int64(np.rint(factors[number] * inverse))
                if code == 0:
                    continue
                places[0, found] = lines[number] * stride
                if found % 2 == 0:
                    words[found // 2] = (code & 255) * 65537
                else:
                    words[found // 2] += (code & 255) * 256 + ((code & 255) << 24)
                added += code
                found += 1
            if found % 2 == 1:
                places[0, found] = places[0, found - 1]
                found += 1
            for number in range(found):
                later = stop + number
                next_row = (
                    codes + lines[later] * stride if later < count else follow + (later - count) * stride
                )
                places[1, number] = next_row - codes
            scale = most / np.float32(127)
            sums = scale * np.float32(added if bits == 4 else -128 * added)
            grid = grids + group * each
            add_group(
                to,
                codes,
                grid,
                below,
                each,
                bits,
                words_at,
                places_at,
                ahead_at,
                found,
                scale,
                sums,
                first,
                last,
            )
        index = stop
