"""Compiled: products of rows in 8 and 4 bits with many positions, which read each row once."""

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.panel_products import ABREAST, times_eight, times_four
from shadow.executors.cpu.panels import (
    GRID,
    PANEL,
    TOGETHER,
    panel_of_rows,
    panels_of_sums,
)
from shadow.executors.cpu.states import quantise
from shadow.executors.cpu.team import meet, share
from shadow.executors.cpu.vectors import address_of
from shadow.plans.compiled import compiled


@compiled()
def of_panel(codes, scales, minima, panel, groups, states, count, out, start):
    """Outputs from `start` on of the first `count` positions, and of up to three more, become a panel's
    products. codes, scales, minima: a member's own, flat; panel: which of them."""
    room, length, each = -(-groups // 16) * 16 * GRID, states.length[0], states.length[1] * 4
    here, step = address_of(codes) + panel * groups * PANEL, out.shape[1] * 4
    grid, below = address_of(scales) + panel * room, address_of(minima) + panel * room
    code, scale, total = address_of(states.codes), address_of(states.scale), address_of(states.total)
    to = address_of(out) + start * 4
    b = 0
    while b < count:
        codes_at, line, place = code + b * length, b * each, to + b * step
        if b + ABREAST < count:
            times_eight(
                here, grid, below, groups, codes_at, length, scale + line, total + line, each, place, step
            )
            b += 2 * ABREAST
        else:
            times_four(
                here, grid, below, groups, codes_at, length, scale + line, total + line, each, place, step
            )
            b += ABREAST


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
