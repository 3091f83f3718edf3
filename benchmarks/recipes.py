"""The plans and recipes of conf/ on the same images, over seeds: what each reaches on test.

    python -m benchmarks.recipes ROOT TABLE WEIGHTS [--seeds 3] [--out FOLDER]

ROOT and TABLE are Kermany's chest X-rays (`python -m benchmarks.kermany_table METADATA TABLE --train 400 --val 200
--test 600`), WEIGHTS the published CIFAR-10 ResNet-20. Images are read at 32 px, so the scores tell the recipes apart
and nothing about what these X-rays allow. Writes the section "Recipes" of RESULTS.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import machine, write_section

EPOCHS = ["trainer.max_epochs=10"]
PRETRAINED: dict[str, list[str]] = {
    "finetuning=full": EPOCHS,
    "finetuning=linear_probe": [*EPOCHS, "optimizer.lr=0.01"],
    "finetuning=last_stage": EPOCHS,
    "finetuning=head_then_full": EPOCHS,
    "finetuning=gradual": EPOCHS,
    "experiment=fastai_fine_tune": EPOCHS,
    "experiment=adamw_layer_decay": EPOCHS,
    "experiment=bit_hyperrule": [],
}
"""Words of a run from WEIGHTS; where none are given, the recipe's own length. The head alone takes a higher rate."""
LONG = ["trainer.max_epochs=40"]
RANDOM: dict[str, list[str]] = {"finetuning=full": LONG, "experiment=imagenet_sgd": LONG}


def score(words: list[str], run: Path) -> dict[str, float]:
    """AUROC on test with its interval, mean over the classes, of one run of the command."""
    command = [sys.executable, "-m", "finetune", *words, "evaluation.thumbnails=0", f"hydra.run.dir={run}"]
    if not (run / "scores.json").is_file():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "scores.json").read_text())["test"]["macro"]["auroc"]


def row(name: str, start: str, scores: list[dict[str, float]]) -> str:
    values = [one["value"] for one in scores]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    each = "; ".join(f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in scores)
    return f"| `{name}` | {start} | {statistics.mean(values):.3f}{spread} | {each} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("root", "table", "weights"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keeps the runs, and goes on where they stopped")
    given: Any = parser.parse_args()
    real = ["data=csv", f"data.table={given.table.absolute()}", f"data.root={given.root.absolute()}"]
    real += ["data.label=label", "data.patient=patient_id", "data.split=split", "data.image_size=32"]
    real += ["backbone=resnet20_cifar"]
    with tempfile.TemporaryDirectory() as temporary:
        out = (given.out or Path(temporary)).absolute()
        parts = [
            ("CIFAR-10", [*real, f"backbone.weights={given.weights.absolute()}"], PRETRAINED),
            ("random", [*real, "backbone.weights=none"], RANDOM),
        ]
        rows = []
        for number, (start, common, ways) in enumerate(parts):
            for name, words in ways.items():
                scores = [
                    score([name, *common, *words, f"seed={seed}"], out / f"{number}_{name.split('=')[1]}_{seed}")
                    for seed in range(given.seeds)
                ]
                rows.append(row(name, start, scores))
                print(rows[-1], flush=True)
    head = [
        "`python -m benchmarks.recipes ROOT TABLE WEIGHTS`: AUROC on test, mean ± standard deviation over seeds, and",
        "of each seed with its 95 % interval over patients. ResNet-20 on 400 chest X-rays of children at 32 px, tested",
        "on 600 others; 10 epochs, from random weights 40, BiT-HyperRule 500 steps.",
        "",
        "| words | starts from | test AUROC | each seed |",
        "| --- | --- | --- | --- |",
    ]
    write_section("Recipes", "\n".join([*head, *rows, "", f"{machine()}; seeds 0 to {given.seeds - 1}."]))


if __name__ == "__main__":
    main()
