"""Weights that are pages of a file, as safetensors loads them: once copied, the system may have them back."""

import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor

PAGEOUT = (
    21  # Linux's MADV_PAGEOUT: take the pages back now; whoever reads them again gets them from the file
)


def file_ranges() -> list[range]:
    """Of this process's addresses, those that show a file; only Linux tells."""
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.is_file():
        return []
    found = []
    for line in maps.read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append(range(start, end))
    return found


def let_go(weight: Tensor, files: list[range]) -> None:
    """Give the whole pages of a contiguous weight back, if they are a file's.

    Nothing changes but memory: pages that were written to stay, and so do those that another process shows.
    """
    first, page = weight.data_ptr(), mmap.PAGESIZE
    start, end = -(-first // page) * page, (first + weight.nbytes) // page * page
    if end > start and any(first in file for file in files):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        madvise(start, end - start, PAGEOUT)  # an advice: a kernel that does not know it (before 5.4) refuses
