"""Compiled: of some grids of 4 bits the nearest to 32 weights, as llama.cpp searches those of its Q4_K."""

import numpy as np

from shadow.executors.cpu.storage import FAST
from shadow.plans.compiled import compiled

HIGHEST = 15  # code
TRIED = 21  # steps between grid lines, a tenth of a code apart


@compiled()
def code(weight, scale, minimum):
    if scale == 0:
        return np.float32(0)
    return min(max(np.rint((weight - minimum) / scale), np.float32(0)), np.float32(HIGHEST))


@compiled(FAST)
def candidates(weights):
    """weights: float32 [N, 32] -> scales and minima, float32 [N, 1 + TRIED]: first the grid from the least to
    the greatest, then some that end within, each fitted to its codes by least squares."""
    groups, size = weights.shape
    scales = np.empty((groups, 1 + TRIED), np.float32)
    minima = np.empty((groups, 1 + TRIED), np.float32)
    for n in range(groups):
        row = weights[n]
        low, high, total = row[0], row[0], np.float32(0)
        for value in row:
            low, high, total = min(low, value), max(high, value), total + value
        mean = total / np.float32(size)
        scales[n, 0], minima[n, 0] = (high - low) / np.float32(HIGHEST), low
        for number in range(TRIED):
            span = (high - low) / np.float32(HIGHEST - 1 + number / 10)
            first, second, both = np.float32(0), np.float32(0), np.float32(0)
            for value in row:
                on = code(value, span, low)
                first, second, both = first + on, second + on * on, both + on * (value - mean)
            spread = second - first * first / np.float32(size)
            scale = both / max(spread, np.float32(1e-30))
            scales[n, 1 + number] = scale
            minima[n, 1 + number] = mean - scale * first / np.float32(size)
    return scales, minima


@compiled(FAST)
def nearest(weights, scales, minima):
    """scales, minima: the candidates', rounded to what is stored -> int64 [N], which of them, and uint8
    [N, 32], its codes. All but the first must use the lowest and the highest code, or would not be found
    again."""
    groups, size = weights.shape
    best, codes = np.zeros(groups, np.int64), np.empty((groups, size), np.uint8)
    for n in range(groups):
        least = np.float32(np.inf)
        for number in range(scales.shape[1]):
            scale, minimum = scales[n, number], minima[n, number]
            error, lowest, highest = np.float32(0), np.float32(HIGHEST), np.float32(0)
            for value in weights[n]:
                on = code(value, scale, minimum)
                away = scale * on + minimum - value
                error, lowest, highest = error + away * away, min(lowest, on), max(highest, on)
            if error < least and (number == 0 or (lowest == 0 and highest == HIGHEST)):
                least, best[n] = error, number
        for at in range(size):
            codes[n, at] = np.uint8(code(weights[n, at], scales[n, best[n]], minima[n, best[n]]))
    return best, codes
