"""Products of a panel of 32 outputs with some positions at once."""

from shadow.executors.cpu.panels import GRID, PANEL, woven_first_floats, woven_last_floats
from shadow.executors.cpu.vectors import (
    add_wide_products,
    as_floats,
    fused,
    no_floats,
    no_ints,
    read_bytes,
    read_everywhere,
    read_everywhere_float,
    read_floats,
    store_floats,
    times,
)
from shadow.plans.compiled import compiled

ABREAST = 4  # positions that are multiplied at once, where there are not as many more


@compiled()
def finish(ints, grid, minima, scale, total, sums):
    """sums + a group's products, as whole numbers, times both scales, + its minima times its states."""
    found = fused(as_floats(ints), times(read_floats(grid), read_everywhere_float(scale)), sums)
    return fused(read_floats(minima), read_everywhere_float(total), found)


@compiled()
def times_four(panel, grid, minima, groups, codes, length, scale, total, each, out, step):
    """out: the address of 32 outputs of four positions, `step` bytes apart, which become a panel's products.

    codes, scale, total: the first position's states; those of the next lie `length` and `each` bytes behind.
    """
    a0, a1, a2, a3 = no_floats(), no_floats(), no_floats(), no_floats()
    b0, b1, b2, b3 = no_floats(), no_floats(), no_floats(), no_floats()
    for group in range(groups):
        i0, i1, i2, i3 = no_ints(), no_ints(), no_ints(), no_ints()
        j0, j1, j2, j3 = no_ints(), no_ints(), no_ints(), no_ints()
        here, of = panel + group * PANEL, codes + group // 4 * 128 + group % 4 * 16
        for half in range(2):
            for four in range(4):
                one = read_bytes(here + half * 512 + four * 128)
                other = read_bytes(here + half * 512 + four * 128 + 64)
                at = of + half * 64 + four * 4
                first, second = read_everywhere(at), read_everywhere(at + length)
                third, fourth = read_everywhere(at + 2 * length), read_everywhere(at + 3 * length)
                i0, j0 = add_wide_products(i0, one, first), add_wide_products(j0, other, first)
                i1, j1 = add_wide_products(i1, one, second), add_wide_products(j1, other, second)
                i2, j2 = add_wide_products(i2, one, third), add_wide_products(j2, other, third)
                i3, j3 = add_wide_products(i3, one, fourth), add_wide_products(j3, other, fourth)
        left, below = grid + group * GRID, minima + group * GRID
        s, t = scale + group * 4, total + group * 4
        a0, b0 = finish(i0, left, below, s, t, a0), finish(j0, left + 64, below + 64, s, t, b0)
        s, t = s + each, t + each
        a1, b1 = finish(i1, left, below, s, t, a1), finish(j1, left + 64, below + 64, s, t, b1)
        s, t = s + each, t + each
        a2, b2 = finish(i2, left, below, s, t, a2), finish(j2, left + 64, below + 64, s, t, b2)
        s, t = s + each, t + each
        a3, b3 = finish(i3, left, below, s, t, a3), finish(j3, left + 64, below + 64, s, t, b3)
    write_sides(out, a0, b0)
    write_sides(out + step, a1, b1)
    write_sides(out + 2 * step, a2, b2)
    write_sides(out + 3 * step, a3, b3)


@compiled()
def write_sides(out, left, right):
    store_floats(out, woven_first_floats(left, right))
    store_floats(out + 64, woven_last_floats(left, right))


@compiled()
def times_eight(panel, grid, minima, groups, codes, length, scale, total, each, out, step):
    """As `times_four`, of eight positions: one product need not wait for another, whose sums would."""
    a0, a1, b0, b1 = no_floats(), no_floats(), no_floats(), no_floats()
    a2, a3, b2, b3 = no_floats(), no_floats(), no_floats(), no_floats()
    a4, a5, b4, b5 = no_floats(), no_floats(), no_floats(), no_floats()
    a6, a7, b6, b7 = no_floats(), no_floats(), no_floats(), no_floats()
    for group in range(groups):
        i0, i1, j0, j1 = no_ints(), no_ints(), no_ints(), no_ints()
        i2, i3, j2, j3 = no_ints(), no_ints(), no_ints(), no_ints()
        i4, i5, j4, j5 = no_ints(), no_ints(), no_ints(), no_ints()
        i6, i7, j6, j7 = no_ints(), no_ints(), no_ints(), no_ints()
        here, of = panel + group * PANEL, codes + group // 4 * 128 + group % 4 * 16
        for half in range(2):
            for four in range(4):
                one = read_bytes(here + half * 512 + four * 128)
                other = read_bytes(here + half * 512 + four * 128 + 64)
                at = of + half * 64 + four * 4
                now = read_everywhere(at)
                i0, j0 = add_wide_products(i0, one, now), add_wide_products(j0, other, now)
                now = read_everywhere(at + length)
                i1, j1 = add_wide_products(i1, one, now), add_wide_products(j1, other, now)
                now = read_everywhere(at + 2 * length)
                i2, j2 = add_wide_products(i2, one, now), add_wide_products(j2, other, now)
                now = read_everywhere(at + 3 * length)
                i3, j3 = add_wide_products(i3, one, now), add_wide_products(j3, other, now)
                now = read_everywhere(at + 4 * length)
                i4, j4 = add_wide_products(i4, one, now), add_wide_products(j4, other, now)
                now = read_everywhere(at + 5 * length)
                i5, j5 = add_wide_products(i5, one, now), add_wide_products(j5, other, now)
                now = read_everywhere(at + 6 * length)
                i6, j6 = add_wide_products(i6, one, now), add_wide_products(j6, other, now)
                now = read_everywhere(at + 7 * length)
                i7, j7 = add_wide_products(i7, one, now), add_wide_products(j7, other, now)
        left, below = grid + group * GRID, minima + group * GRID
        right, under = left + 64, below + 64
        s, t = scale + group * 4, total + group * 4
        a0, b0 = finish(i0, left, below, s, t, a0), finish(j0, right, under, s, t, b0)
        s, t = s + each, t + each
        a1, b1 = finish(i1, left, below, s, t, a1), finish(j1, right, under, s, t, b1)
        s, t = s + each, t + each
        a2, b2 = finish(i2, left, below, s, t, a2), finish(j2, right, under, s, t, b2)
        s, t = s + each, t + each
        a3, b3 = finish(i3, left, below, s, t, a3), finish(j3, right, under, s, t, b3)
        s, t = s + each, t + each
        a4, b4 = finish(i4, left, below, s, t, a4), finish(j4, right, under, s, t, b4)
        s, t = s + each, t + each
        a5, b5 = finish(i5, left, below, s, t, a5), finish(j5, right, under, s, t, b5)
        s, t = s + each, t + each
        a6, b6 = finish(i6, left, below, s, t, a6), finish(j6, right, under, s, t, b6)
        s, t = s + each, t + each
        a7, b7 = finish(i7, left, below, s, t, a7), finish(j7, right, under, s, t, b7)
    write_sides(out, a0, b0)
    write_sides(out + step, a1, b1)
    write_sides(out + 2 * step, a2, b2)
    write_sides(out + 3 * step, a3, b3)
    write_sides(out + 4 * step, a4, b4)
    write_sides(out + 5 * step, a5, b5)
    write_sides(out + 6 * step, a6, b6)
    write_sides(out + 7 * step, a7, b7)
