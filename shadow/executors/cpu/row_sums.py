"""Sums of rows in 8 and 4 bits, each times its factor, as whole numbers."""

import numpy as np

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.storage import FAST
from shadow.executors.cpu.vectors import (
    add_ints,
    add_shorts,
    address_of,
    as_floats,
    everywhere,
    first_half,
    fused,
    high,
    last_half,
    low,
    no_ints,
    no_shorts,
    pair_up,
    prefetch,
    read_bytes,
    read_everywhere,
    read_floats,
    read_halves,
    read_place,
    sixteenfold,
    store_floats,
    times,
    woven_first,
    woven_last,
)
from shadow.executors.cpu.widen import widen_out
from shadow.plans.compiled import compiled

PAIRS = 16  # rows whose products with 4 bits surely fit 16 bits: 15 * 127 * 16 = 30,480


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
