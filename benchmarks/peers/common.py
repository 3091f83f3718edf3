"""What every peer gets and gives. No import of this project: the peers run in an environment of their own."""

import argparse
import json
import os
import time
from pathlib import Path

import pandas as pd

STARTED = float(os.environ.get("PEER_STARTED", time.time()))
"""When the command was started."""


def arguments() -> argparse.Namespace:
    """--root --table --backbone --size --epochs --batch --workers; the table has path, label and split (train, val)."""
    parser = argparse.ArgumentParser()
    for name in ("root", "table", "backbone", "folders"):
        parser.add_argument(f"--{name}")
    for name, default in (("size", 96), ("epochs", 4), ("batch", 32), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=3e-4)
    return parser.parse_args()


def read_table(given: argparse.Namespace) -> pd.DataFrame:
    """path (whole), label, split."""
    table = pd.read_csv(given.table)
    return table.assign(path=[str(Path(given.root) / path) for path in table["path"]])


class Epochs:
    """Seconds of each epoch, training and validation, and the AUROC after it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.auroc: list[float] = []
        self.ends: list[float] = []
        self.first: float | None = None
        self.begun = time.time()

    def begin(self) -> None:
        self.begun = time.time()
        if self.first is None:
            self.first = self.begun - STARTED

    def end(self, auroc: float) -> None:
        now = time.time()
        self.seconds.append(now - self.begun)
        self.ends.append(now - STARTED)
        self.auroc.append(float(auroc))
        self.begun = now

    def write(self) -> None:
        """One line of JSON, the last of the output."""
        facts = {"epochs": self.seconds, "auroc": self.auroc, "ends": self.ends, "first": self.first}
        print("\n" + json.dumps(facts), flush=True)
