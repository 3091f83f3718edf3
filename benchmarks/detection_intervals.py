"""How often the 95 % intervals of AP50 and mean FROC sensitivity hold the truth in simulated worlds, and their cost.
Writes DETECTION_INTERVALS.md.

python benchmarks/detection_intervals.py [--worlds 400]
"""

import argparse
import platform
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from finetune.evaluation.detection.assessment import DetectionAssessment
from finetune.evaluation.detection.detections import DetectedBoxes, Detections, TrueBoxes
from finetune.evaluation.detection.frames import image_table
from finetune.evaluation.detection.scorer import Scorer, joined
from finetune.evaluation.detection.summary import described, interval
from finetune.statistics import intervals
from finetune.statistics.intervals import on_logit_scale, percentile

RESAMPLES = 400
METHODS = ("percentile", "logit", "**logit, t**")
TRUTH_PATIENTS = 60_000


def simulated(rng, patients, several, lesions, hit_rate, shift, classes=1) -> Detections:
    """`lesions` true boxes per image and class; a patient's lesions are alike in how well they are found, and a
    patient's images in how many false positives they have (3 on average)."""
    owner = np.repeat(np.arange(patients), rng.geometric(0.4, patients) if several else 1)
    n = len(owner)
    ease, noise = rng.normal(size=patients)[owner], rng.normal(size=patients)[owner]
    truths, boxes = [], []
    for k in range(classes):
        image = np.repeat(np.arange(n), rng.poisson(lesions / (k + 1), n))
        place = np.arange(len(image)) % 30 * 100.0  # apart from each other
        corners = np.stack([place, np.full(len(image), 100.0 * k), place + 50, np.full(len(image), 100.0 * k + 50)], 1)
        truths.append((image, np.full(len(image), k), corners))
        hit = rng.random(len(image)) < expit(np.log(hit_rate / (1 - hit_rate)) + ease[image])
        score = expit(shift + 0.7 * ease[image] + rng.normal(size=len(image)))
        false = np.repeat(np.arange(n), rng.poisson(3 * np.exp(0.5 * noise - 0.125)))
        beside = np.tile([5000.0, 0, 5050, 50], (len(false), 1))
        boxes.append((image[hit], np.full(hit.sum(), k), corners[hit], score[hit]))
        boxes.append((false, np.full(len(false), k), beside, expit(rng.normal(size=len(false)) - 1)))
    image, label, corners = (np.concatenate(column) for column in zip(*truths, strict=True))
    true = TrueBoxes(image, label, corners, np.zeros(len(image), bool), np.full(len(image), 2500.0))
    detected = DetectedBoxes(*(np.concatenate(column) for column in zip(*boxes, strict=True)))
    images = image_table([str(i) for i in range(n)], [f"{i:06d}" for i in owner])
    return Detections(images, true, detected, list("abcdef"[:classes]))


def coverage(worlds, patients, several, lesions, hit_rate, shift) -> tuple[dict, float]:
    """(metric, method) -> share of the worlds whose interval holds the truth; median number of patients with a box."""
    rng = np.random.default_rng(0)
    big = Scorer(simulated(rng, TRUTH_PATIENTS, several, lesions, hit_rate, shift), ious=(0.5,)).values()
    truth = {metric: float(values[0, 0]) for metric, values in big.classes.items()}
    held, having = defaultdict(list), []
    for _ in range(worlds):
        scorer = Scorer(simulated(rng, patients, several, lesions, hit_rate, shift), ious=(0.5,))
        has = int((scorer.truths[0] > 0).sum())
        having.append(has)
        drawn = intervals.resamples(scorer.n_patients, RESAMPLES, int(rng.integers(2**32)))
        value, resampled = scorer.values(), joined([scorer(weight) for weight in drawn])
        for metric, true in truth.items():
            at, samples = float(value.classes[metric][0, 0]), resampled.classes[metric][0]
            made = (
                percentile(at, samples),
                on_logit_scale(at, intervals.spread(samples)),
                interval(at, samples, scorer.n_patients, has),
            )
            for method, limits in zip(METHODS, made, strict=True):
                if not np.isnan(limits.low):  # no interval makes no claim
                    held[metric, method].append(limits.low <= true <= limits.high)
    return {"truth": truth, **{key: float(np.mean(values)) for key, values in held.items()}}, float(np.median(having))


def macro_coverage(worlds) -> list[str]:
    """Means of four classes, the rarest in a twelfth of the images."""
    lines = []
    for patients in (60, 200):
        rng = np.random.default_rng(0)
        case = {"several": True, "lesions": 0.33, "hit_rate": 0.75, "shift": 0.8, "classes": 4}
        big = Scorer(simulated(rng, TRUTH_PATIENTS, **case), ious=(0.5,)).values().macro()
        held = defaultdict(list)
        for _ in range(worlds):
            scorer = Scorer(simulated(rng, patients, **case), ious=(0.5,))
            drawn = intervals.resamples(scorer.n_patients, RESAMPLES, int(rng.integers(2**32)))
            macro = described(scorer, scorer.values(), joined([scorer(weight) for weight in drawn]))["macro"]
            for metric in ("ap50", "froc"):
                limits = macro[metric]
                if limits["low"] is not None and not np.isnan(limits["low"]):
                    held[metric].append(limits["low"] <= big[metric][0] <= limits["high"])
        row = " | ".join(f"{big[m][0]:.2f} | {100 * np.mean(held[m]):.1f}" for m in ("ap50", "froc"))
        lines.append(f"| {patients} | {row} |")
        print(lines[-1], flush=True)
    return lines


def timing() -> str:
    """Seconds for 5,000 images of 2,500 patients, 100 detections each, 3 classes, 1,000 resamples."""
    rng = np.random.default_rng(0)
    n, each, k = 5000, 100, 3
    image = np.repeat(np.arange(n), rng.poisson(1.5, n))
    corner, sides = rng.uniform(0, 900, (len(image), 2)), rng.uniform(30, 120, (len(image), 2))
    corners, label = np.concatenate([corner, corner + sides], axis=1), rng.integers(k, size=len(image))
    true = TrueBoxes(image, label, corners, np.zeros(len(image), bool), sides.prod(axis=1))
    hit = np.flatnonzero(rng.random(len(image)) < 0.8)
    near = corners[hit] + rng.normal(0, 4, (len(hit), 2)) @ np.array([[1, 0, 1, 0], [0, 1, 0, 1.0]])
    false = np.repeat(np.arange(n), each - np.bincount(image[hit], minlength=n))
    corner = rng.uniform(0, 900, (len(false), 2))
    beside = np.concatenate([corner, corner + rng.uniform(30, 120, corner.shape)], axis=1)
    boxes = DetectedBoxes(
        np.r_[image[hit], false],
        np.r_[label[hit], rng.integers(k, size=len(false))],
        np.concatenate([near, beside]),
        np.r_[rng.beta(4, 2, len(hit)), rng.beta(1, 4, len(false))],
    )
    images = image_table([str(i) for i in range(n)], [str(i) for i in rng.integers(2500, size=n)], pd.DataFrame())
    detections = Detections(images, true, boxes, list("abc"))
    assessment = DetectionAssessment(resamples=1000)
    fitted = assessment.fit(detections)
    began, worked = time.perf_counter(), time.process_time()
    assessment.score(detections, fitted)
    return (
        f"{time.perf_counter() - began:.1f} seconds ({time.process_time() - worked:.1f} of one processor, "
        f"{platform.machine()})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=400)
    worlds = parser.parse_args().worlds
    error = 100 * np.sqrt(0.95 * 0.05 / worlds)
    rows = []
    for several in (False, True):
        for patients, lesions in ((20, 0.5), (60, 0.3), (200, 0.1), (200, 0.5)):
            for hit_rate, shift in ((0.6, 0.3), (0.9, 1.5)):
                held, having = coverage(worlds, patients, several, lesions, hit_rate, shift)
                for metric in ("ap50", "froc"):
                    row = f"| {'several' if several else 'one'} | {patients} | {having:.0f} | {metric} |"
                    row += f" {held['truth'][metric]:.2f} |"
                    rows.append(row + "".join(f" {100 * held[metric, method]:.1f} |" for method in METHODS))
                    print(rows[-1], flush=True)
    head = ["images per patient", "patients", "with a true box", "score", "its true value", *METHODS]
    text = [
        "# Intervals of detection scores: how often they hold the truth",
        "",
        f"`python benchmarks/detection_intervals.py --worlds {worlds}` writes this file. Each number is the percentage",
        f"of {worlds:,} simulated worlds whose 95 % interval holds the true value: 95 is right, {error:.1f} is the",
        f"standard error of the simulation, {RESAMPLES} resamples each. A patient's lesions are alike in how well they",
        "are found, and a patient's images in how many false positives they have; `several` is 2.5 images on average.",
        "Bold is what finetune reports. No interval makes no claim: worlds in which a method gives none are left out.",
        "",
        "## One class",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *rows,
        "",
        "## Mean of four classes",
        "",
        f"The rarest in a twelfth of the images; {worlds // 2:,} worlds.",
        "",
        "| patients | true AP50 | held | true mean FROC sensitivity | held |",
        "| --- | --- | --- | --- | --- |",
        *macro_coverage(worlds // 2),
        "",
        "## Cost",
        "",
        "Everything in scores.json for 5,000 images of 2,500 patients, 100 detections each, 3 classes and 1,000",
        f"resamples: {timing()}.",
        "",
    ]
    Path(__file__).with_name("DETECTION_INTERVALS.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
