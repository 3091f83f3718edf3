"""The processes that a first rank starts on its own machine."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from finetune.training.launch.link import LAST, POLL


def log_file(run: Path, rank: int) -> Path:
    """Where a rank above 0 writes what it has to say."""
    return run / f"rank_{rank}.log"


class Children:
    """The ranks above 0 that a first rank starts on its machine; what they say goes to rank_N.log in the run folder."""

    def __init__(self, run: Path):
        self.run = run
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, size: int, port: int) -> None:
        """Ranks 1 to size - 1, which will ask this process for their run at `port`."""
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "NODE_RANK": "0"}
        if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
            threads = max(1, (os.cpu_count() or 1) // size)
            shared["OMP_NUM_THREADS"] = str(threads)
            torch.set_num_threads(threads)
        for number in range(1, size):
            environment = {**os.environ, **shared, "LOCAL_RANK": str(number), "RANK": str(number)}
            with (log_file(self.run, number)).open("w") as log:
                self.processes[number] = subprocess.Popen(
                    [sys.executable, "-m", "finetune"], env=environment, stdout=log, stderr=subprocess.STDOUT
                )

    def failure(self, wait: float = 0.0) -> str | None:
        """Why one of them is gone, waited for up to `wait` seconds: none leaves before it is told to."""
        deadline = time.monotonic() + wait
        while self.processes:
            for number, process in self.processes.items():
                if (status := process.poll()) is not None:
                    log = log_file(self.run, number)
                    tail = log.read_text(errors="replace").strip().splitlines()[-3:] if log.is_file() else []
                    return "\n".join([f"Rank {number} ended with exit status {status}.", *tail])
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL)
        return None

    def wait(self) -> None:
        """Until they have ended by themselves, if they do."""
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST)

    def stop(self) -> None:
        """End those that have not."""
        left = [process for process in self.processes.values() if process.poll() is None]
        for process in left:
            process.terminate()
        for process in left:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
