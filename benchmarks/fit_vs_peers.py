"""A fit from the command line beside the same training by other programs, in turn on the same images.

    python -m benchmarks.fit_vs_peers --python PEERS_PYTHON --root DIR --table TABLE [--backbone resnet18] [--size 96]
        [--epochs 4] [--rounds 3]

TABLE has path, label (two classes), split (train, val, test) and patient_id. Every program trains on train, validates
on val after each epoch, with the same batch, rate, number of workers and augmentation of the same strength, from random
weights. Rounds are A B C D A B C D ...; ratios are formed within a round, and their median, least and greatest are
given. `whole` is from the start of the command to its end: ours audits the images, calibrates, scores both splits and
writes a report in it, the others only train. `first epoch` is from the start of the command to that of the first epoch.
Writes the section "Fit beside others: BACKBONE, SIZE px" of RESULTS.md.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from benchmarks.results import machine, write_section

PEERS = {
    "lightning + timm": "lightning_timm.py",
    "timm's loop": "timm_fit.py",
    "fastai": "fastai_fit.py",
    "autotimm": "autotimm_fit.py",
}


@dataclass
class Timing:
    """Of one run."""

    epochs: list[float]
    whole: float
    first: float
    peak_mib: float
    auroc: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    @property
    def epoch(self) -> float:
        """Seconds of an epoch after the first."""
        return statistics.median(self.epochs[1:] or self.epochs)

    def reached(self, auroc: float) -> float | None:
        """Seconds until an epoch on val reached it."""
        return next((end for end, value in zip(self.ends, self.auroc, strict=True) if value >= auroc), None)


def run(command: list[str], environment: dict[str, str]) -> tuple[list[tuple[float, str]], float, float]:
    """Lines of output with their time, seconds and peak MiB of a command and its children."""
    start = time.time()
    environment = {**environment, "PEER_STARTED": str(start)}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        lines = [(time.time() - start, line) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{errors.read()[-3000:]}")
    return lines, time.time() - start, usage.ru_maxrss / 1024


def ours(given: argparse.Namespace, folder: Path) -> Timing:
    words = [
        *("data=csv", f"data.table={given.table}", f"data.root={given.root}"),
        *("data.label=label", "data.patient=patient_id", "data.split=split", "data.val_fraction=0.1"),
        *(f"backbone={given.backbone}", "backbone.weights=none", f"data.image_size={given.size}"),
        *(f"data.batch_size={given.batch}", f"data.num_workers={given.workers}", f"optimizer.lr={given.lr}"),
        *(f"trainer.max_epochs={given.epochs}", f"hydra.run.dir={folder}/run", *given.word),
    ]
    shutil.rmtree(folder / "run", ignore_errors=True)
    environment = {**os.environ, "FINETUNE_CACHE": str(folder / "cache")}
    shutil.rmtree(folder / "cache", ignore_errors=True)  # every image is decoded in every run, as the others do
    lines, whole, peak = run([sys.executable, "-m", "finetune", *words], environment)
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seconds = [float(row["seconds"]) for row in rows]
    ends = [at for at, line in lines if line.startswith("epoch ")]
    return Timing(seconds, whole, ends[0] - seconds[0], peak, [float(row["val/auroc"]) for row in rows], ends)


def peer(script: str, given: argparse.Namespace, folders: Path) -> Timing:
    path = Path(__file__).parent / "peers" / script
    options = {
        name: getattr(given, name) for name in ("root", "table", "backbone", "size", "epochs", "batch", "workers", "lr")
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    lines, whole, peak = run([given.python, str(path), *words, "--folders", str(folders)], dict(os.environ))
    facts = json.loads([line for _, line in lines if line.startswith('{"epochs"')][-1])
    return Timing(facts["epochs"], whole, facts["first"], peak, facts["auroc"], facts["ends"])


def make_folders(given: argparse.Namespace, folder: Path) -> Path:
    """train/LABEL/... and val/LABEL/... as links, for programs that read folders."""
    for number, row in pd.read_csv(given.table).iterrows():
        if row["split"] in ("train", "val"):
            place = folder / row["split"] / str(row["label"])
            place.mkdir(parents=True, exist_ok=True)
            source = (Path(given.root) / row["path"]).resolve()
            (place / f"{number}{source.suffix}").symlink_to(source)
    return folder


def ratio(mine: list[float], theirs: list[float]) -> str:
    values = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    return f"{statistics.median(values):.2f} [{values[0]:.2f}, {values[-1]:.2f}]"


def parser(description: str | None, epochs: int) -> argparse.ArgumentParser:
    """The options of every measurement beside peers."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("python", "root", "table"):
        made.add_argument(f"--{name}", required=True)
    made.add_argument("--backbone", default="resnet18")
    for name, default in (("size", 96), ("epochs", epochs), ("batch", 32), ("workers", 2), ("rounds", 3)):
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--lr", type=float, default=3e-4)
    made.add_argument(
        "--word", action="append", default=[], help="a further word of ours, such as data.audit.near=false"
    )
    return made


def measure(given: argparse.Namespace) -> dict[str, list[Timing]]:
    """Program -> its timing in each round."""
    if set(pd.read_csv(given.table)["split"]) != {"train", "val", "test"}:
        raise SystemExit(
            "The table needs train, val and test: a test split cut from train would leave ours fewer images."
        )
    timings: dict[str, list[Timing]] = {name: [] for name in ("finetune", *PEERS)}
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_folders(given, Path(temporary) / "folders")
        programs: dict[str, Callable[[], Timing]] = {"finetune": lambda: ours(given, Path(temporary))}
        programs |= {name: lambda script=script: peer(script, given, folders) for name, script in PEERS.items()}
        for number in range(given.rounds):
            for name, program in programs.items():
                timings[name].append(timing := program())
                print(f"round {number} {name}: {timing}", flush=True)
    return timings


def command_of(module: str, given: argparse.Namespace) -> str:
    """The command in RESULTS.md, and the machine."""
    words = " ".join(f"--{name} {getattr(given, name)}" for name in ("backbone", "size", "epochs", "rounds"))
    return f"`python -m benchmarks.{module} {words} ...`, {given.workers} workers.\n{machine()}\n\n"


def main() -> None:
    given = parser(__doc__, epochs=4).parse_args()
    write_section(f"Fit beside others: {given.backbone}, {given.size} px", text_of(given, measure(given)))


def text_of(given: argparse.Namespace, timings: dict[str, list[Timing]]) -> str:
    rows = [
        "| program | epoch, s | ours / it | whole, s | ours / it | first epoch, s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    mine = timings["finetune"]
    for name, runs in timings.items():
        epoch, whole = ([getattr(t, key) for t in runs] for key in ("epoch", "whole"))
        ratios = (
            ["", ""] if runs is mine else [ratio([t.epoch for t in mine], epoch), ratio([t.whole for t in mine], whole)]
        )
        first, peak = (statistics.median([getattr(t, key) for t in runs]) for key in ("first", "peak_mib"))
        rows.append(
            f"| {name} | {statistics.median(epoch):.1f} | {ratios[0]} | {statistics.median(whole):.1f} | {ratios[1]} "
            f"| {first:.1f} | {peak:.0f} |"
        )
    best = [
        min(t.epoch for name, runs in timings.items() if name != "finetune" for t in [runs[n]])
        for n in range(given.rounds)
    ]
    rows.append(f"\nEpoch of ours / that of the fastest other in the round: {ratio([t.epoch for t in mine], best)}.")
    return command_of("fit_vs_peers", given) + "\n".join(rows)


if __name__ == "__main__":
    main()
