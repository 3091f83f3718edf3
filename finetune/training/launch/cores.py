"""The processor cores that a run may use."""

import os

CORES = "FINETUNE_CORES"
"""Environment variable with a run's share of the cores, where several run beside each other."""


def cores() -> int:
    """The number of cores for a run of this process: its share among parallel runs, else all that the process may use
    (on a cluster those of its allocation)."""
    share = os.environ.get(CORES, "")
    if share.isdigit():
        return max(1, int(share))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
