"""Peak memory of this process."""

import resource
import sys

import torch

MIB = 2**20


def peak_mib() -> int:
    """MiB: of the GPU where there is one, else of this process (the workers come on top)."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / MIB)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / MIB if sys.platform == "darwin" else peak / 1024)
