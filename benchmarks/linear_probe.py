"""What published weights are worth with few labels: a linear probe against training from scratch on the same images.

    python -m benchmarks.linear_probe CIFAR_FOLDER WEIGHTS [--seeds 3] [--out FOLDER]

CIFAR_FOLDER holds a folder of images per class, WEIGHTS a DenseNet-BC (L=100, k=12) trained on CIFAR-100. For each
seed a table is written (20 training images per class, 10 to choose the epoch by, 100 to test on; `split_table`) and two
runs of the product's own command are made on it. Writes the section "Linear probe" of RESULTS.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.results import machine, write_section

BACKBONE = "densenet_bc_100_12"
PER_CLASS = {"train": 20, "val": 10, "test": 100}
PROBE = ["finetuning=linear_probe", "transforms=none", "optimizer.lr=0.02", "trainer.max_epochs=20"]
SCRATCH = ["finetuning=full", "transforms=natural", "optimizer.lr=0.003", "trainer.max_epochs=20"]


def split_table(folder: Path, seed: int) -> pd.DataFrame:
    """path, label, split: PER_CLASS images of every class, drawn by `seed`, none of them twice."""
    rows = []
    for label in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        images = pd.Series(sorted(path.name for path in (folder / label).iterdir()))
        images = images.sample(sum(PER_CLASS.values()), random_state=seed)
        splits = [split for split, count in PER_CLASS.items() for _ in range(count)]
        rows += [(f"{label}/{name}", label, split) for name, split in zip(images, splits, strict=True)]
    return pd.DataFrame(rows, columns=["path", "label", "split"])


def accuracy(folder: Path, table: Path, seed: int, run: Path, words: list[str]) -> dict[str, float]:
    """Test accuracy with its interval, of one run of the command."""
    command = [sys.executable, "-m", "finetune", "data=csv", f"data.table={table}", f"data.root={folder}"]
    command += ["data.label=label", "data.split=split", f"backbone={BACKBONE}", "data.image_size=32", f"seed={seed}"]
    command += ["data.audit.on_leak=warn"]  # CIFAR-10 holds near copies; a pair of them may be torn by a table
    subprocess.run([*command, *words, f"hydra.run.dir={run}"], check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "scores.json").read_text())["test"]["overall"]["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where the tables and runs go; by default they are not kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[dict[str, float]]] = {"probe": [], "scratch": []}
        for seed in range(options.seeds):
            table = out / f"split_{seed}.csv"
            split_table(options.folder, seed).to_csv(table, index=False)
            for way, words in (
                ("probe", [f"backbone.weights={options.weights.absolute()}", *PROBE]),
                ("scratch", ["backbone.weights=none", *SCRATCH]),
            ):
                found[way].append(accuracy(options.folder.absolute(), table, seed, out / f"{way}_{seed}", words))
                print(way, seed, found[way][-1], flush=True)
    lines = [
        f"DenseNet-BC (L=100, k=12) trained on CIFAR-100, then CIFAR-10 with {PER_CLASS['train']} training images per",
        f"class and {10 * PER_CLASS['test']:,} test images; `python -m benchmarks.linear_probe CIFAR_FOLDER WEIGHTS`.",
        "",
        "| way | accuracy, mean over seeds | per seed, with 95 % interval |",
        "| --- | --- | --- |",
    ]
    names = {"probe": "linear probe on the weights", "scratch": "the same network from random weights, same images"}
    for way, scores in found.items():
        mean = statistics.mean(score["value"] for score in scores)
        each = "; ".join(f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in scores)
        lines.append(f"| {names[way]} | {mean:.3f} | {each} |")
    write_section("Linear probe", "\n".join([*lines, "", f"{machine()}; seeds 0 to {options.seeds - 1}."]))


if __name__ == "__main__":
    main()
