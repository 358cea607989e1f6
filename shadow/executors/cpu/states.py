"""States in 8 bits: what rows of whole numbers are multiplied with."""

from typing import NamedTuple

import numpy as np

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import BLOCK, groups_in
from shadow.executors.cpu.vectors import (
    add_ints,
    address_of,
    everywhere,
    greater,
    largest,
    magnitude,
    nearest,
    read_floats,
    store_as_bytes,
    times,
    total_of_ints,
)
from shadow.plans.compiled import compiled


class States(NamedTuple):
    """Of B rows, each in groups of 32 numbers with one scale, flat. codes: int8 [B, blocks, 2, 4, 16], the
    first 16 of four groups, then the last; scale, total: float32 [B, G], G a multiple of 16; total is the sum
    of a group's codes times its scale; mask: uint16 [G], 65,535 where there is a group. With `exact` products
    are taken of `numbers`, float32 [B, E], as they were before they were rounded."""

    codes: np.ndarray
    scale: np.ndarray
    total: np.ndarray
    mask: np.ndarray
    length: np.ndarray  # int64 [2]: codes and groups of a row
    numbers: np.ndarray
    exact: bool


def empty_states(rows: int, width: int, exact: bool = False) -> States:
    groups = groups_in(width)
    room = -(-groups // 16) * 16
    mask = np.where(np.arange(room) < groups, 0xFFFF, 0).astype(np.uint16)
    return States(
        codes=np.zeros(rows * room * GROUP, np.int8),
        scale=np.zeros(rows * room, np.float32),
        total=np.zeros(rows * room, np.float32),
        mask=mask,
        length=np.array([room * GROUP, room]),
        numbers=np.empty((rows, width if exact else 0), np.float32),
        exact=exact,
    )


@compiled()
def quantise(x, line, width, states, b):
    """The first `width` numbers of x's line: float32 [N, E or more] -> line b of the states."""
    flat, codes, scales, totals = x.reshape(-1), states.codes, states.scale, states.total
    if states.exact:
        for e in range(width):
            states.numbers[b, e] = x[line, e]
        return
    start, code_at, group_at = line * x.shape[1], b * states.length[0], b * states.length[1]
    full, source, target = width // GROUP, address_of(flat), address_of(codes)
    for group in range(full):
        at = start + group * GROUP
        one, other = read_floats(source + at * 4), read_floats(source + at * 4 + 64)
        most = largest(greater(magnitude(one), magnitude(other)))
        inverse = np.float32(127) / most if most > 0 else np.float32(0)
        factor = everywhere(np.float32(inverse))
        one, other = nearest(times(one, factor)), nearest(times(other, factor))
        place = code_at + group // BLOCK * 128 + group % BLOCK * 16
        store_as_bytes(target + place, one)
        store_as_bytes(target + place + 64, other)
        scales[group_at + group] = most / np.float32(127)
        totals[group_at + group] = scales[group_at + group] * np.float32(total_of_ints(add_ints(one, other)))
    if full * GROUP < width:
        most = np.float32(0)
        for e in range(full * GROUP, width):
            most = max(most, abs(flat[start + e]))
        inverse = np.float32(127) / most if most > 0 else np.float32(0)
        place, found = code_at + full // BLOCK * 128 + full % BLOCK * 16, 0
        for e in range(full * GROUP, width):
            inside = e - full * GROUP
            code = np.int64(np.rint(flat[start + e] * inverse))
            codes[place + inside // 16 * 64 + inside % 16] = code
            found += code
        scales[group_at + full] = most / np.float32(127)
        totals[group_at + full] = scales[group_at + full] * np.float32(found)
