"""The processes that a first rank starts on its own machine."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from finetune.training.launch.cores import cores
from finetune.training.launch.link import POLL, STOP_SECONDS


def log_file(run: Path, rank: int) -> Path:
    """The log of a rank above 0."""
    return run / f"rank_{rank}.log"


class Children:
    """The ranks above 0 that a first rank starts on its machine; their output goes to rank_N.log in the run folder."""

    def __init__(self, run: Path):
        self.run = run
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, size: int, port: int) -> None:
        """Start ranks 1 to size - 1, which get their run from this process at `port`."""
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "NODE_RANK": "0"}
        if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
            threads = max(1, cores() // size)
            shared["OMP_NUM_THREADS"] = str(threads)
            torch.set_num_threads(threads)
        for number in range(1, size):
            environment = {**os.environ, **shared, "LOCAL_RANK": str(number), "RANK": str(number)}
            with (log_file(self.run, number)).open("w") as log:
                self.processes[number] = subprocess.Popen(
                    [sys.executable, "-m", "finetune"], env=environment, stdout=log, stderr=subprocess.STDOUT
                )

    def failure(self, wait: float = 0.0) -> str | None:
        """Why one of them ended, within `wait` seconds; None if all are running. Normally none ends before `stop`."""
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
        """Wait until they end by themselves, for a limited time."""
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """Terminate those still running."""
        running = [process for process in self.processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
