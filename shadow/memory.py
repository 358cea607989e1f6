"""How much memory this process has taken."""

import resource
import sys

import torch


def peak_memory() -> float:
    """The most so far, in GB: of the devices together if there are any, else resident in main memory."""
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return sum(torch.cuda.max_memory_allocated(device) for device in devices) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
