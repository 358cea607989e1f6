"""Products of some rows with all lines of an array, in any storage."""

import numpy as np
from numba import types
from numba.extending import overload

from shadow.executors.cpu.grids import GROUP
from shadow.executors.cpu.grouped import InRows
from shadow.executors.cpu.matrices import In
from shadow.executors.cpu.row_dots import all_dots
from shadow.executors.cpu.states import States, quantise
from shadow.executors.cpu.storage import CHUNK, dots


def dots_between(
    x: np.ndarray,
    rows: In,
    bias: np.ndarray,
    layer: int,
    start: int,
    stop: int,
    lines: np.ndarray,
    out: np.ndarray,
    exact: bool,
) -> None:
    """For compiled code. x: float32 [B, E], bias: [L, R]; out: [B, R] becomes, from `start` up to `stop`,
    these rows' products with x, plus the bias. lines: room to work in. States that meet rows in 4 and 8 bits
    are rounded to 8 bits by 32 neighbours, unless `exact`."""
    raise NotImplementedError("for compiled code alone")


@overload(dots_between, jit_options={"nogil": True, "error_model": "numpy"})
def _dots_between(x, rows, bias, layer, start, stop, lines, out, exact):
    if isinstance(rows, types.NamedTuple) and rows.instance_class is InRows:
        return _of_states
    return _of_numbers


def _of_numbers(x, rows, bias, layer, start, stop, lines, out, exact):
    for begin in range(start, stop, CHUNK):
        count = min(CHUNK, stop - begin)
        for index in range(count):
            lines[index] = begin + index
        for b in range(len(out)):
            dots(x, b, rows, bias, layer, lines, count, out)


def _of_states(x, rows, bias, layer, start, stop, lines, out, exact):
    room = -(-rows.groups // 16) * 16
    mask = np.zeros(room, np.uint16)
    mask[: rows.groups] = 65535
    states = States(
        np.zeros(room * GROUP, np.int8),
        np.zeros(room, np.float32),
        np.zeros(room, np.float32),
        mask,
        np.array([room * GROUP, room]),
        np.empty((1, rows.width if exact else 0), np.float32),
        exact,
    )
    for b in range(len(out)):
        quantise(x, b, rows.width, states, 0)
        all_dots(states, 0, rows, bias, layer, start, stop, out, b)
