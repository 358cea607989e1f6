"""Compiled: the highest of many numbers, and what becomes of the rest."""

import numpy as np
from numba import njit

SECANTS = 8  # guesses by the numbers themselves, before halving, which takes 32 whatever they are


@njit(inline="always")
def turned(bits):
    """A float32's bits so that whole numbers compare as floats do, and back."""
    return bits if bits >= 0 else np.int32(-(2**31)) - bits


@njit(inline="always")
def whole_of(number):
    return turned(np.float32(number).view(np.int32))


@njit(inline="always")
def float_of(whole):
    return np.int32(turned(np.int32(whole))).view(np.float32)


@njit(nogil=True, cache=True, error_model="numpy")
def keep_top(scores, start, count, n, work, keep):
    """keep[:count]: True at the n highest of scores[start:start + count]; among equals the first stay.

    What parts them is found by counting what is above a guess, which takes no branches: first guesses by
    secants between what was counted last below and above (the Illinois rule), then halvings.
    """
    if n <= 0 or n >= count:
        keep[:count] = n > 0
        return
    bits = scores.view(np.int32)
    low, high = np.int32(2**31 - 1), np.int32(-(2**31))
    for unit in range(count):
        own = turned(bits[start + unit])
        work[unit] = own
        low, high = min(low, own), max(high, own)
    below, above = float_of(low), float_of(high)
    many, few = np.float32(count), np.float32(1)  # how many are from `below` on, and from `above` on
    turn = 0
    while low < high:  # more than n are from `low` on, and fewer above `high`, or as many
        middle = low
        if turn < SECANTS:
            middle = whole_of(below + (above - below) * ((many - n) / (many - few)))
        if middle <= low or middle > high:
            middle = np.int32((np.int64(low) + np.int64(high) + 1) >> 1)
        more = np.int32(0)
        for unit in range(count):
            more += np.int32(work[unit] >= middle)
        if more == n:
            low = np.int32(middle - 1)  # exactly these
            break
        if more > n:
            low, below, many = middle, float_of(middle), np.float32(more)
            few = n - (n - few) / 2 if turn % 2 else few
        else:
            high, above, few = np.int32(middle - 1), float_of(middle), np.float32(more)
            many = n + (many - n) / 2 if turn % 2 else many
        turn += 1
    least = np.int32(low)
    free = n
    for unit in range(count):
        higher = work[unit] > least
        keep[unit] = higher
        free -= higher
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


@njit(nogil=True, cache=True, error_model="numpy")
def fill_rows(x, keep, fill):
    """x: [B, T, U, D] -> in place, where keep: bool [B, T or 1, U] is False: fill [U, D]."""
    rows, positions, units, width = x.shape
    for row in range(rows):
        for position in range(positions):
            stays = keep[row, position if keep.shape[1] > 1 else 0]
            here = x[row, position]
            if width == 1:  # neurons: without branches
                for unit in range(units):
                    here[unit, 0] = here[unit, 0] if stays[unit] else fill[unit, 0]
                continue
            for unit in range(units):
                if not stays[unit]:
                    here[unit] = fill[unit]
