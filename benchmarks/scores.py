"""What the scores' promises are worth: intervals, calibration, subgroups and sets where the truth is simulated; speed.

    python -m benchmarks.scores [--worlds 10000]

Writes the section "Scores" of RESULTS.md. benchmarks/intervals.py compares the reported interval with others.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import norm

from benchmarks.intervals import simulated, timing
from benchmarks.results import machine, write_section
from finetune.evaluation.classification import conformal, reliability
from finetune.evaluation.classification.calibration import fit as calibrate
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.subgroups import subgroups
from finetune.statistics.intervals import delong

AUROCS = (0.6, 0.7, 0.8, 0.9, 0.95)
SIZES = ((False, 120), (False, 500), (True, 80), (True, 300))  # several images per patient, patients

COVERAGE = """95 % intervals of a class's AUROC (DeLong over patients, on the logit scale): percentage of {worlds:,}
simulated worlds in which they hold the truth, by the true AUROC. A tenth of the images are positive; images of a
patient are alike (0.6). [INTERVALS.md](INTERVALS.md) has other methods and other scores beside."""
SPEED = """Speed: `summarise` with 2,000 resamples of 25,000 images and 14 findings, every score and interval in
scores.json; the whole command `job=evaluate predictions=FILE labels=FILE` on 22,000 images and 14 findings: {command} s
by the clock."""
CALIBRATION = """Planted miscalibration: calibration error on 3,000 test images, before and after Platt's method was
fitted on 1,000 of val, with 95 % intervals."""
SHIFT = """Planted shift: one of four sites (2,000 images in all) has another AUROC than the 0.85 of the rest; {fewer}
worlds. In the first row it has not, and what is reported is a false alarm."""
SETS = """Conformal sets fitted on a val of so many patients: percentage of new images whose set holds the truth,
{fewer} worlds."""


def table(target, logits, patients, **columns) -> Predictions:
    names = [f"{i}.png" for i in range(len(target))]
    people = [f"p{i}" for i in patients]
    classes = [f"finding {i + 1}" for i in range(target.shape[1])]
    return Predictions.from_arrays(names, people, classes, "multilabel", target, logits, pd.DataFrame(columns))


def coverage(worlds: int) -> list[str]:
    """The percentage of worlds whose 95 % interval of a class's AUROC holds the truth."""
    lines = []
    for several, patients in SIZES:
        cells = []
        for auroc in AUROCS:
            rng, held = np.random.default_rng(1), []
            for _ in range(worlds):
                found = delong(*simulated(rng, patients, auroc, 0.1, several)).interval()
                if not np.isnan(found.low):
                    held.append(found.low <= auroc <= found.high)
            cells.append(f"{100 * np.mean(held):.1f}")
        lines.append(f"| {'3.3 images' if several else 'one image'} | {patients} | {' | '.join(cells)} |")
    return lines


def a_command() -> str:
    """Seconds of `job=evaluate predictions=FILE labels=FILE` on 22,000 images and 14 findings."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        truth = rng.random((22_000, 14)) < np.geomspace(0.002, 0.18, 14)
        chance = expit(1.5 * truth - 2 + rng.normal(size=truth.shape))
        names = [f"{i:08d}_000.png" for i in range(len(truth))]
        classes = [f"finding {i + 1}" for i in range(14)]
        answers = pd.DataFrame(chance, columns=[f"prob_{name}" for name in classes])
        answers.insert(0, "Image Index", names)
        answers.to_csv(Path(folder, "p.csv"), index=False)
        cells = ["|".join(np.array(classes)[row]) or "No Finding" for row in truth]
        labels = {"Image Index": names, "Finding Labels": cells, "Patient ID": rng.integers(6000, size=len(truth))}
        pd.DataFrame(labels).to_csv(Path(folder, "l.csv"), index=False)
        words = ["job=evaluate", "predictions=p.csv", "labels=l.csv", "hydra.run.dir=run"]
        here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "finetune", *words], cwd=folder, check=True, env=here, stdout=subprocess.DEVNULL
        )
        return f"{time.perf_counter() - began:.0f}"


def planted_calibration() -> list[str]:
    """Calibration error on test before and after what was fitted on val, of networks that are known to be wrong."""
    lines = []
    for what, slope, offset in (("twice too sure", 2.0, 0.0), ("shifted by 2.2", 1.0, 2.2), ("both", 2.0, 2.2)):
        given = []
        for seed, n in ((0, 1000), (1, 3000)):
            rng = np.random.default_rng(seed)
            target = (rng.random((n, 1)) < 0.2).astype(float)
            odds = 2 * (rng.normal(size=target.shape) + 2 * target) - 2 + logit(0.2)
            given.append(table(target, slope * odds + offset, np.arange(n) // 2))
        val, test = given
        fitted, _ = calibrate(val, "platt")
        assert fitted is not None
        found = reliability.before_after(test, fitted.probabilities(test.logits))["finding 1"]
        cells = [
            f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"
            for e in (found[w]["ece"] for w in ("before", "after"))
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def planted_shift(worlds: int) -> list[str]:
    """How often a gap between two of four sites is reported as beyond chance, where there is one and where not."""
    lines = []
    for auroc in (0.85, 0.75, 0.65):
        more, right = 0, 0
        for seed in range(worlds):
            rng = np.random.default_rng(seed)
            target = (rng.random((2000, 1)) < 0.2).astype(float)
            site = rng.integers(4, size=2000)
            apart = np.sqrt(2) * norm.ppf(np.where(site == 0, auroc, 0.85))[:, None]
            given = table(
                target, rng.normal(size=target.shape) + apart * target, np.arange(2000), site=site.astype(str)
            )
            gap = subgroups(given, "all", n_boot=200, seed=seed)["site"]["gaps"]["macro"]["auroc"]
            more += gap["low"] > 0
            right += gap["worst"] == "0"
        lines.append(f"| {auroc} | {100 * more / worlds:.0f} % | {100 * right / worlds:.0f} % |")
    return lines


def sets(worlds: int) -> list[str]:
    """How often conformal sets fitted on one sample hold the truth in another: mean over worlds."""
    lines = []
    for error in (0.1, 0.2):
        for several, patients in ((False, 60), (False, 300), (True, 60), (True, 300)):
            held: list[list[float]] = [[], []]
            for seed in range(worlds):
                rng = np.random.default_rng(seed)
                val, test = (
                    table(target[:, None], score[:, None], patient)
                    for target, score, patient in (simulated(rng, p, 0.85, 0.3, several) for p in (patients, 500))
                )
                fitted, _ = conformal.fit(val, error)
                if fitted is not None:
                    result = conformal.evaluate(test, fitted, n_boot=0)["classes"]["finding 1"]
                    for side, name in enumerate(("yes", "no")):
                        held[side].append(result[name]["value"])
            cells = [f"{100 * np.mean(side):.1f}" for side in held]
            each = "3.3 images" if several else "one image"
            lines.append(f"| {100 * (1 - error):.0f} % | {each} | {patients} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=10_000)
    worlds = parser.parse_args().worlds
    fewer = max(worlds // 50, 2)
    speed = timing()
    command = a_command()
    print(command, *speed, sep="\n", flush=True)
    parts = {
        COVERAGE.format(worlds=worlds): [
            f"| each patient has | patients | {' | '.join(map(str, AUROCS))} |",
            "| --- " * (2 + len(AUROCS)) + "|",
            *coverage(worlds),
        ],
        SPEED.format(command=command): ["| labels | seconds | processor seconds |", "| --- | --- | --- |", *speed],
        CALIBRATION: ["| the network is | before | after |", "| --- | --- | --- |", *planted_calibration()],
        SHIFT.format(fewer=fewer): [
            "| AUROC at the site | reported as beyond chance | named as the worst |",
            "| --- | --- | --- |",
            *planted_shift(fewer),
        ],
        SETS.format(fewer=fewer): [
            "| promised | each patient has | patients in val | of those with the finding | of those without |",
            "| --- | --- | --- | --- | --- |",
            *sets(fewer),
        ],
    }
    text = "\n\n".join(f"{about}\n\n" + "\n".join(lines) for about, lines in parts.items())
    write_section(
        "Scores",
        f"`python -m benchmarks.scores --worlds {worlds}`\n\n{text}\n\nAll simulated, seeds 0 and up. {machine()}.",
    )


if __name__ == "__main__":
    main()
