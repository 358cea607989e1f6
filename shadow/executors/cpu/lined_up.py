"""Arrays that begin on a cache line."""

import math

import numpy as np

LINE = 64  # bytes of a cache line


def lined_up(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """From a cache line on: large `np.empty` begins 16 bytes behind one, and vectors would lie across two."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size].view(dtype).reshape(shape)
