"""How much memory this process has taken."""

import re
import resource
from pathlib import Path

import torch


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
