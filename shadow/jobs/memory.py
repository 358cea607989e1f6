"""How much memory this process has taken, and that it keeps what it has."""

import ctypes
import platform
import re
import resource
from pathlib import Path

import torch


def keep_memory() -> None:
    """From now on glibc gives no large tensor back to the system, to ask for the next one page by page.

    A fit of a predictor, which makes and drops tensors of 40 MB, is then two to three times as fast.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def peak_memory() -> float:
    """The most so far, in GB: of the devices together if there are any, else resident in main memory."""
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return sum(torch.cuda.max_memory_allocated(device) for device in devices) / 1e9
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says begins with the peak of the process that started this one
        (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(peak) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # macOS counts bytes
