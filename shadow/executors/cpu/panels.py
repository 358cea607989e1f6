"""Rows in 8 and 4 bits laid out anew for products with many positions: 32 outputs side by side."""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import VECTOR, groups_in
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.operations import load, operation, store
from shadow.executors.cpu.registers import BYTES, FLOATS, HALF, INT, shuffled, whole
from shadow.executors.cpu.vectors import address_of, halves_of, prefetch, read_halves, store_floats
from shadow.plans.compiled import compiled

TOGETHER = 32  # outputs of a panel
PANEL = GROUP * TOGETHER  # bytes of a group's codes in a panel
GRID = TOGETHER * 4  # bytes of its scales, float32
AHEAD = 64  # rows between those that are laid out and those that are fetched


class Panels(NamedTuple):
    """Room of each member for some panels, one behind the other. codes: uint8 [members, panels * G * 1024],
    of each group its 8 fours of inputs, of each four the outputs, [2, 16], of each output four codes. scales,
    minima: float32 [members, panels * G' * 32], G' the next multiple of 16; places: int64 [members, 32].

    Of each 8 outputs of a panel, the first 4 are in its first half.
    """

    codes: np.ndarray
    scales: np.ndarray
    minima: np.ndarray
    places: np.ndarray


def empty_panels(members: int, panels: int, width: int) -> Panels:
    """width: inputs of an output."""
    groups = groups_in(width)
    room = panels * (-(-groups // 16) * 16) * TOGETHER
    return Panels(
        codes=lined_up((members, panels * groups * PANEL), np.dtype(np.uint8)),
        scales=lined_up((members, room), np.dtype(np.float32)),
        minima=lined_up((members, room), np.dtype(np.float32)),
        places=np.empty((members, 32), np.int64),
    )


def _there(builder: Any, address: Any, further: int) -> Any:
    return builder.add(address, ir.Constant(ir.IntType(64), further))


def _loaded(builder: Any, places: Any, offset: Any, kind: ir.Type, count: int) -> list[Any]:
    """What lies `offset` behind each of so many places."""
    found = []
    for number in range(count):
        place = load(builder, _there(builder, places, number * 8), ir.IntType(64))
        found.append(load(builder, builder.add(place, offset), kind))
    return found


def _woven(builder: Any, one: Any, other: Any, size: int, last: bool) -> Any:
    """Of each 16 bytes of two vectors the first or last 8, by turns, `size` lanes at a time."""
    lanes = one.type.count // 4
    start = lanes // 2 if last else 0
    order = [
        lane + at + step + side * one.type.count
        for lane in range(start, one.type.count, lanes)
        for at in range(0, lanes // 2, size)
        for side in range(2)
        for step in range(size)
    ]
    return shuffled(builder, one, other, order)


def _both(builder: Any, one: Any, other: Any, size: int = 1) -> list[Any]:
    return [_woven(builder, one, other, size, last) for last in (False, True)]


def _turned(halves: bool) -> Any:
    """(places, offset, target): 16 bytes of each of 16 rows -> their fours of inputs, half of a panel.

    halves: of 4 bits, of which the last 16 inputs are the upper ones."""

    def build(builder: Any, places: Any, offset: Any, target: Any) -> None:
        rows = _loaded(builder, places, offset, ir.VectorType(INT, 4), 16)
        a, b, c, d = (whole(builder, rows[start::4]) for start in range(4))
        first, second = _both(builder, a, b), _both(builder, c, d)
        fours = [four for pair in zip(first, second) for four in _both(builder, *pair, size=2)]
        found = [builder.bitcast(four, BYTES.ir) for four in fours]
        if halves:
            found = [part for parts in zip(*(halves_of(builder, four) for four in found)) for part in parts]
        for number, four in enumerate(found):
            store(builder, _there(builder, target, number * 128), four)

    return operation(types.void, (types.int64,) * 3, build)


def _turned_scales(builder: Any, places: Any, offset: Any, target: Any) -> None:
    """Of each of 16 rows 16 groups' numbers in half precision -> those of each group, half of a panel."""
    loaded = _loaded(builder, places, offset, ir.VectorType(HALF, 16), 16)
    rows = [builder.fpext(row, FLOATS.ir) for row in loaded]
    for _ in range(4):
        pairs = zip(rows[:8], rows[8:])
        rows = [
            shuffled(builder, one, other, [lane for at in range(start, start + 8) for lane in (at, at + 16)])
            for one, other in pairs
            for start in (0, 8)
        ]
    for number, row in enumerate(rows):
        store(builder, _there(builder, target, number * GRID), row)


def _laid(halves: bool) -> Any:
    """(places, offset, target, step): 64 bytes of each of 4 rows, codes of outputs, -> a four of inputs of 4
    panels (halves: of 4 bits), or of 2, which are `step` bytes apart."""

    def build(builder: Any, places: Any, offset: Any, target: Any, step: Any) -> None:
        rows = _loaded(builder, places, offset, BYTES.ir, 4)
        parts = zip(*(halves_of(builder, row) for row in rows)) if halves else [rows]
        for a, b, c, d in parts:
            for one, other in zip(_both(builder, a, b), _both(builder, c, d)):
                for number, found in enumerate(_both(builder, one, other, size=2)):
                    store(builder, _there(builder, target, number * 64), found)
                target = builder.add(target, step)

    return operation(types.void, (types.int64,) * 4, build)


def _side(first: int) -> Any:
    """Of each 8 numbers of two vectors 4, from `first` on."""
    lanes = [at + step for at in range(first, 32, 8) for step in range(4)]
    return operation(
        FLOATS, (FLOATS, FLOATS), lambda builder, one, other: shuffled(builder, one, other, lanes)
    )


def _woven_floats(start: int) -> Any:
    """What `_side` has taken apart."""
    lanes = [at + side + step for at in range(start, start + 8, 4) for side in (0, 16) for step in range(4)]
    return operation(
        FLOATS, (FLOATS, FLOATS), lambda builder, one, other: shuffled(builder, one, other, lanes)
    )


turn_fours, turn_eights = _turned(halves=True), _turned(halves=False)
turn_scales = operation(types.void, (types.int64,) * 3, _turned_scales)
lay_fours, lay_eights = _laid(halves=True), _laid(halves=False)
left_side, right_side = _side(0), _side(4)
woven_first_floats, woven_last_floats = _woven_floats(0), _woven_floats(8)


@compiled()
def panel_of_rows(rows, layer, lines, begin, places, codes, scales, minima):
    """Lay out the rows of 32 of `lines`: int64, from `begin` on, or of those there are. places: int64 [16 or
    more]; codes, scales, minima: a member's own, flat."""
    bits, groups, stride, count = rows.bits, rows.groups, rows.stride, len(lines)
    start, stored = address_of(rows.records) + layer * rows.rows * stride, groups * GROUP * bits // 8
    place = address_of(places)
    for side in range(2):
        for at in range(16):
            number = begin + at // 4 * 8 + side * 4 + at % 4
            places[at] = start + lines[min(number, count - 1)] * stride
            ahead = places[at] + TOGETHER * stride
            for line in range(0, stride + 63, 64):
                prefetch(ahead + line)
        here = address_of(codes) + side * 64
        for group in range(groups):
            if bits == 4:
                turn_fours(place, group * 16, here + group * PANEL)
            else:
                block = group // 4 * 4
                offset, half = block * GROUP + (group - block) * 16, 16 * min(4, groups - block)
                turn_eights(place, offset, here + group * PANEL)
                turn_eights(place, offset + half, here + group * PANEL + 512)
        for group in range(0, groups, 16):
            turn_scales(place, stored + 2 * group, address_of(scales) + side * 64 + group * GRID)
            if bits == 4:
                offset = stored + 2 * (groups + group)
                turn_scales(place, offset, address_of(minima) + side * 64 + group * GRID)
    if bits == 8:
        for at in range(groups * TOGETHER):
            minima[at] = np.float32(-128) * scales[at]


@compiled()
def lay_grid(grid, to):
    """Half-precision numbers of 32 outputs -> those of a panel."""
    one, other = read_halves(grid), read_halves(grid + 32)
    store_floats(to, left_side(one, other))
    store_floats(to + 64, right_side(one, other))


@compiled()
def panels_of_sums(rows, layer, block, places, codes, scales, minima):
    """Lay out a vector of outputs of rows that are added up: as many panels as fill it."""
    bits, stride, count = rows.bits, rows.stride, rows.rows
    size, groups = VECTOR // bits, -(-count // GROUP)
    below = rows.blocks * size * 2
    each = below * 2 if bits == 4 else below
    start = address_of(rows.records) + layer * count * stride
    grids = address_of(rows.grids) + layer * groups * each + block * size * 2
    place, here, room = address_of(places), address_of(codes), -(-groups // 16) * 16 * GRID
    scales_at, minima_at = address_of(scales), address_of(minima)
    for group in range(groups):
        for four in range(GROUP // 4):
            for at in range(4):
                places[at] = start + min(group * GROUP + four * 4 + at, count - 1) * stride
                prefetch(places[at] + block * 64 + AHEAD * stride)
            to = here + group * PANEL + four * 128
            if bits == 4:
                lay_fours(place, block * 64, to, groups * PANEL)
            else:
                lay_eights(place, block * 64, to, groups * PANEL)
        for part in range(size // TOGETHER):
            grid, to = grids + group * each + part * 64, part * room + group * GRID
            lay_grid(grid, scales_at + to)
            if bits == 4:
                lay_grid(grid + below, minima_at + to)
    if bits == 8:
        for at in range(size // TOGETHER * room // 4):
            minima[at] = np.float32(-128) * scales[at]
