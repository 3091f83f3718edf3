"""How much memory this process has needed so far."""

import resource
import sys

import torch

MIB = 2**20


def peak() -> int:
    """MiB: of the GPU where there is one, else of this process (the workers come on top)."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / MIB)
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(found / MIB if sys.platform == "darwin" else found / 1024)
