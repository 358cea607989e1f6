"""Compiled: the highest of many numbers, and what becomes of the rest.

Loops over units hold one array that is written and whole numbers of 32 bits, so that each becomes a few wide
instructions: numba's sums are of 64 bits unless told otherwise, and a sum beside a write keeps both narrow.
"""

import numpy as np
from numba import njit

from shadow.plans.compiled import compiled

SECANTS = 8  # guesses by the numbers themselves, before halving, which takes 32 whatever they are
NO_GUESS = np.int32(-(2**31))


@njit(inline="always")
def turned(bits):
    """A float32's bits so that whole numbers compare as floats do, and back."""
    return bits if bits >= 0 else np.int32(np.int32(-(2**31)) - bits)


@njit(inline="always")
def whole_of(number):
    return turned(np.float32(number).view(np.int32))


@njit(inline="always")
def float_of(whole):
    return np.int32(turned(np.int32(whole))).view(np.float32)


@njit(inline="always")
def count_from(least, work, count):
    """How many of work[:count] are at least so much."""
    found = np.int32(0)
    for unit in range(count):
        found = np.int32(found + np.int32(work[unit] >= least))
    return found


@compiled()
def keep_top(scores, start, count, n, work, keep, guess):
    """keep[:count]: True at the n highest of scores[start:start + count]; among equals the first stay.

    What parts them is found by counting what is above a guess, which takes no branches: first guesses by
    secants between what was counted last below and above (the Illinois rule), then halvings. What parted
    numbers like these is a good first guess, and what parts these is returned to be one.
    """
    if n <= 0 or n >= count:
        keep[:count] = n > 0
        return guess
    bits = scores.view(np.int32)
    low, high = np.int32(2**31 - 1), np.int32(-(2**31))
    for unit in range(count):
        own = turned(bits[start + unit])
        work[unit] = own
        low, high = min(low, own), max(high, own)
    below, above = float_of(low), float_of(high)
    many, few = np.float32(count), np.float32(1)  # how many are from `below` on, and from `above` on
    middle, more, turn = guess, np.int32(0), 0
    while low < high:  # more than n are from `low` on, and fewer above `high`, or as many
        if turn >= SECANTS:
            middle = low
        elif turn > 0 or middle <= low or middle > high:
            middle = whole_of(below + (above - below) * ((many - n) / (many - few)))
        if middle <= low or middle > high:
            middle = np.int32((np.int64(low) + np.int64(high) + 1) >> 1)
        more = count_from(middle, work, count)
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
    for unit in range(count):
        keep[unit] = work[unit] > low
    if more == n:
        return middle
    free = n - count_from(np.int32(low + 1), work, count)
    for unit in range(count):
        if free == 0:
            break
        if work[unit] == low:
            keep[unit] = True
            free -= 1
    return low


@compiled()
def keep_rows(scores, n, keep):
    """scores: float32 [N, U] -> keep: bool [N, U], of each row as `keep_top`."""
    rows, count = scores.shape
    work = np.empty(count, np.int32)
    guess = NO_GUESS
    for row in range(rows):
        guess = keep_top(scores[row], 0, count, n, work, keep[row], guess)


@compiled()
def fill_rows(x, keep, fill):
    """x: [B, T, U, D] -> in place, where keep: bool [K, U] is False: fill [U, D]; a row of keep holds for
    B * T / K positions of x, one after the other."""
    units, width = fill.shape
    rows = x.reshape(-1, units, width)
    each = len(rows) // len(keep)
    if width == 1:
        fill_neurons(rows.reshape(-1, units), keep, fill.reshape(units), each)
        return
    for row in range(len(rows)):
        for unit in range(units):
            if not keep[row // each, unit]:
                for at in range(width):
                    rows[row, unit, at] = fill[unit, at]


@njit(inline="always")
def fill_neurons(rows, keep, fill, each):
    """`fill_rows` of units of one number: neighbours lie side by side, and are written by one instruction."""
    for row in range(len(rows)):
        here, stays = rows[row], keep[row // each]
        for unit in range(len(fill)):
            if not stays[unit]:
                here[unit] = fill[unit]
