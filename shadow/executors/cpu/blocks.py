"""Compiled: products of rows in 8 and 4 bits with many positions, which read each row once."""

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.panels import (
    GRID,
    PANEL,
    TOGETHER,
    panel_of_rows,
    panels_of_sums,
    woven_first_floats,
    woven_last_floats,
)
from shadow.executors.cpu.states import quantise
from shadow.executors.cpu.team import meet, share
from shadow.executors.cpu.vectors import (
    add_wide_products,
    address_of,
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

ABREAST = 4  # positions that are multiplied at once


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
def of_panel(codes, scales, minima, panel, groups, states, count, out, start):
    """Outputs from `start` on of the first `count` positions, and of up to three more, become a panel's
    products. codes, scales, minima: a member's own, flat; panel: which of them."""
    room, length, each = -(-groups // 16) * 16 * GRID, states.length[0], states.length[1] * 4
    here, step = address_of(codes) + panel * groups * PANEL, out.shape[1] * 4
    grid, below = address_of(scales) + panel * room, address_of(minima) + panel * room
    code, scale, total = address_of(states.codes), address_of(states.scale), address_of(states.total)
    to = address_of(out) + start * 4
    for b in range(0, count, ABREAST):
        line = b * each
        times_four(
            here, grid, below, groups, code + b * length, length, scale + line, total + line, each,
            to + b * step, step,
        )  # fmt: skip


@compiled()
def round_positions(x, width, states, board, member, members):
    """x: float32 [T, N], the first `width` numbers of each -> its line of the states."""
    start, stop = share(len(x), member, members)
    for position in range(start, stop):
        quantise(x, position, width, states, position)
    meet(board, members)


@compiled()
def in_panels(count):
    """So many outputs, with those that fill the last panel."""
    return -(-count // TOGETHER) * TOGETHER


@compiled()
def multiply_panels(rows, layer, lines, first, last, count, states, panels, out, start, member):
    """As `multiply_rounded`, of the panels of `lines` from `first` up to `last`."""
    codes, scales, minima = panels.codes[member], panels.scales[member], panels.minima[member]
    places = panels.places[member]
    for panel in range(first, last):
        begin = panel * TOGETHER
        panel_of_rows(rows, layer, lines, begin, places, codes, scales, minima)
        of_panel(codes, scales, minima, 0, rows.groups, states, count, out, start + begin)


@compiled()
def multiply_rounded(rows, layer, lines, count, states, panels, out, start, member, members):
    """The states of `count` positions times the rows of `lines`, whole numbers [N] -> as many lines of out:
    [count + 3 or more, N + 31 or more], of which N columns from `start` on, and up to 31 more."""
    first, last = share(-(-len(lines) // TOGETHER), member, members)
    multiply_panels(rows, layer, lines, first, last, count, states, panels, out, start, member)


@compiled()
def multiply_block(rows, layer, lines, x, states, panels, out, board, member, members):
    """As `multiply_rounded`, of x: float32 [T, E]. states: room for T + 3 positions."""
    round_positions(x, rows.width, states, board, member, members)
    multiply_rounded(rows, layer, lines, len(x), states, panels, out, 0, member, members)


@compiled()
def add_block(rows, layer, x, states, panels, out, board, member, members):
    """As `add_rounded`, of x: float32 [T, R]."""
    round_positions(x, rows.rows, states, board, member, members)
    add_rounded(rows, layer, len(x), states, panels, out, member, members)


@compiled()
def add_rounded(rows, layer, count, states, panels, out, member, members):
    """out: [count + 3 or more, E + 31 or more], of which the first E of `count` lines become the sums of all
    rows times the states. Outputs of a vector that is not full are overwritten by the next ones."""
    codes, scales, minima = panels.codes[member], panels.scales[member], panels.minima[member]
    places, size, groups = panels.places[member], VECTOR // rows.bits, -(-rows.rows // GROUP)
    first, last = share(rows.blocks, member, members)
    for block in range(first, last):
        panels_of_sums(rows, layer, block, places, codes, scales, minima)
        parts, start = size // TOGETHER, block * size
        valid = min(TOGETHER, (-(-rows.width // GROUP) * GROUP - start) // parts)
        for part in range(parts):
            of_panel(codes, scales, minima, part, groups, states, count, out, start + part * valid)
