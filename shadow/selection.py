"""Compiled: the highest of many numbers."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def keep_top(scores, start, count, n, work, keep):
    """keep[:count]: True at the n highest of scores[start:start + count]; among equals the first stay.

    What parts them is found by halving what it can be, at most 32 times: counting takes no branches. Whole
    numbers of the same bits compare as floats do, once those of negative ones are turned round.
    """
    if n <= 0:
        keep[:count] = False
        return
    bits = scores.view(np.int32)
    for unit in range(count):
        own = bits[start + unit]
        work[unit] = own if own >= 0 else np.int32(-(2**31)) - own
    low, high = -(2**31), 2**31 - 1  # at least n are from `low` on, or n above it
    while low < high:
        middle = np.int32((low + high + 1) >> 1)
        more = np.int32(0)
        for unit in range(count):
            more += np.int32(work[unit] >= middle)
        if more == n:
            low = np.int64(middle) - 1  # exactly these
            break
        if more > n:
            low = np.int64(middle)
        else:
            high = np.int64(middle) - 1
    least = np.int32(low)
    free = n
    for unit in range(count):
        above = work[unit] > least
        keep[unit] = above
        free -= above
    for unit in range(count):
        if free == 0:
            break
        if work[unit] == least:
            keep[unit] = True
            free -= 1


@njit(nogil=True, cache=True, error_model="numpy")
def keep_rows(scores, n, keep):
    """scores: float32 [N, U] -> keep: bool [N, U], of each row as `keep_top`."""
    rows, count = scores.shape
    work = np.empty(count, np.int32)
    for row in range(rows):
        keep_top(scores[row], 0, count, n, work, keep[row])
