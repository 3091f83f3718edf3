"""What job=preview foretells of an epoch's time and memory against what a fit then needs.

    python -m benchmarks.preview KERMANY NIH

KERMANY holds images and metadata.csv (path, label, patient_id, split), NIH the published layout. Writes the section
"Preview" of RESULTS.md.
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


def foretold_and_found(words: list[str]) -> str:
    """A row: seconds per epoch and MiB, of the preview and of a fit of three epochs (their median; the peak)."""
    with tempfile.TemporaryDirectory() as folder:
        for job in ("preview", "fit"):
            command = [sys.executable, "-m", "finetune", f"job={job}", "backbone.weights=none", *words]
            more = ["trainer.max_epochs=3", f"hydra.run.dir={folder}/{job}"]
            subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
        cost = json.loads(Path(folder, "preview", "preview.json").read_text())["cost"]
        found = pd.read_csv(Path(folder, "fit", "metrics.csv"))
    seconds, peak = statistics.median(found["seconds"]), int(found["peak_mib"].max())
    foretold = (cost["seconds_per_epoch"], cost["peak_memory_mib"])
    return (
        f"{foretold[0]:.0f} | {seconds:.0f} | {foretold[0] / seconds:.2f} | "
        f"{foretold[1]:,} | {peak:,} | {foretold[1] / peak:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kermany", type=Path)
    parser.add_argument("nih", type=Path)
    given = parser.parse_args()
    table = [f"data.table={given.kermany}/metadata.csv", f"data.root={given.kermany}", "data.label=label"]
    kermany = ["data=csv", *table, "data.patient=patient_id", "data.split=split"]
    nih = ["data=chestxray", f"data.root={given.nih}", "data.findings=[Pneumonia]"]
    lines = [
        "`python -m benchmarks.preview KERMANY NIH`",
        "",
        "Seconds per epoch and MiB of the main process, as job=preview foretells them from 16 steps, and as a fit of",
        "three epochs then has them (median; peak).",
        "",
        "| run | foretold, s | found, s | ratio | foretold, MiB | found, MiB | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, words in {
        "resnet18, Kermany, 96 px": [*kermany, "backbone=resnet18", "data.image_size=96"],
        "densenet121, NIH, 96 px, batch 16": [*nih, "backbone=densenet121", "data.image_size=96", "data.batch_size=16"],
        "resnet50, NIH, 128 px, head only": [
            *nih,
            "backbone=resnet50",
            "data.image_size=128",
            "finetuning=linear_probe",
        ],
    }.items():
        lines.append(f"| {name} | {foretold_and_found(words)}")
        print(lines[-1], flush=True)
    write_section("Preview", "\n".join([*lines, "", f"{machine()}; seed 0."]))


if __name__ == "__main__":
    main()
